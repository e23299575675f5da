"""Compiled code is renewed with all the source that it is made of, read here from that source."""

import ast
import importlib
import inspect
import os
import pkgutil
import sys

import pytest

import agents
import mechanisms
from agents import kernels

OURS = ("mechanisms", "agents", "market", "experiments")


def compiled_functions():
    """Every function of the project that numba keeps on disk."""
    for package in (mechanisms, agents):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            source = importlib.util.find_spec(found.name).loader.get_source(found.name)
            if "njit" in source or "compiled" in source:
                module = importlib.import_module(found.name)
                for held in vars(module).values():
                    if kept(held) and held.py_func.__module__ == module.__name__:
                        yield held


def kept(held):
    return hasattr(held, "py_func") and hasattr(getattr(held, "_cache", None), "_cache_file")


class Source:
    """Where the names of a module come from."""

    def __init__(self, name):
        self.name = name
        tree = ast.parse(inspect.getsource(sys.modules[name]))
        self.imported, self.assigned = {}, {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(OURS):
                for alias in node.names:
                    inside = f"{node.module}.{alias.name}"
                    self.imported[alias.asname or alias.name] = (
                        inside if inside in sys.modules else node.module
                    )
        for node in tree.body:
            if isinstance(node, ast.Assign):
                used = named(node.value)
                self.assigned |= {name: used for target in node.targets for name in named(target)}


def named(node):
    """All names in a piece of code."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def made_of(function, seen=None):
    """Names of all modules whose source ends up in the code of `function`."""
    seen = set() if seen is None else seen
    if function in seen:
        return set()
    seen.add(function)
    body = function.py_func
    source = Source(body.__module__)
    modules = {source.name}
    names = list(body.__code__.co_names)
    while names:
        name = names.pop()
        held = body.__globals__.get(name)
        if kept(held) or hasattr(held, "py_func"):
            modules |= made_of(held, seen)
        elif inspect.ismodule(held) and held.__name__.startswith(OURS):
            modules.add(held.__name__)
            for attribute in body.__code__.co_names:
                inner = getattr(held, attribute, None)
                if hasattr(inner, "py_func"):
                    modules |= made_of(inner, seen)
        elif name in source.imported:
            modules.add(source.imported[name])
        elif name in source.assigned:
            names.extend(source.assigned.pop(name))
    return modules


def stamps(nested):
    """Times of change and sizes of all other files that a function is renewed with."""
    if not isinstance(nested, tuple):
        return set()
    pair = {nested[:2]} if isinstance(nested[0], float) else set()
    return pair.union(*map(stamps, nested))


FUNCTIONS = list(compiled_functions())


def test_they_are_all_found():
    assert len(FUNCTIONS) > 30
    assert kernels.serve in FUNCTIONS
    assert len({function.py_func.__module__ for function in FUNCTIONS}) >= 6


def name(function):
    return f"{function.py_func.__module__}.{function.__name__}"


@pytest.mark.parametrize("function", FUNCTIONS, ids=name)
def test_what_is_compiled_is_renewed_with_what_it_is_made_of(function):
    known = stamps(function._cache._cache_file._source_stamp)
    for module in made_of(function) - {function.py_func.__module__}:
        status = os.stat(sys.modules[module].__file__)
        assert (status.st_mtime, status.st_size) in known, f"not renewed with {module}"


def test_what_code_is_made_of_is_read_from_its_source():
    gibbs = "mechanisms.kernels.gibbs_numba"
    assert made_of(kernels._charge) == {"agents.kernels", gibbs}  # a constant
    assert made_of(kernels._close) == {"agents.kernels", "agents.tally"}  # made from one
    assert made_of(kernels.serve) >= {"agents.kernels", "agents.tally", gibbs}  # and calls

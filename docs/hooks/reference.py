"""Reference pages made from the program itself: scenarios, parameters, commands."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import typer
from mkdocs.structure.files import File

from agents.learners.registry import LEARNERS
from experiments.cli import app
from market.scenario import Scenario
from mechanisms.registry import MECHANISMS

SCENARIO = """\
# Scenario reference

A scenario is a YAML file that describes a market; `admarket run FILE` runs it. Keys that are left
out have the default, unknown keys are refused, and the scenario as resolved, with every default
written out, is kept in the results folder as `scenario.yaml`. Wherever a mechanism or a learner is
asked for, its name will do, or `{name: ..., parameters: {...}}`; their parameters have
[a page of their own](parameters.md). This page is made from the schema in `market/scenario.py`.
"""
PARAMETERS = """\
# Parameters of mechanisms and learners

As keywords of `make_mechanism` and `make_learner`, and under `parameters` in a
[scenario](scenario.md). This page is made from the classes themselves.
"""
COMMANDS = """\
# Command reference

Exit codes: 0 done, 1 the run failed, 2 bad input, said in one line. `admarket COMMAND --help` says
what is below.
"""


def on_files(files, config):
    """Add the three pages."""
    pages = {"scenario.md": scenario(), "parameters.md": parameters(), "commands.md": commands()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def scenario() -> str:
    """A section for the scenario and each part of it, in the order in which they are met."""
    schema = Scenario.model_json_schema()
    parts, waiting, met = [SCENARIO], [("Scenario", schema)], set()
    while waiting:
        name, part = waiting.pop(0)
        documented = described(part.get("description", ""))
        rows = []
        for key, of in part["properties"].items():
            default = "**required**" if key in part.get("required", ()) else _default(of)
            meaning = documented.get(key, "")
            for nested in _references(of):
                meaning = meaning or _opening(schema["$defs"][nested]).splitlines()[0]
                if nested not in met:
                    met.add(nested)
                    waiting.append((nested, schema["$defs"][nested]))
            rows.append((f"`{key}`", _type(of), default, meaning))
        parts.append(f"## {section(name)}\n\n{_opening(part)}\n")
        parts.append(_table(("key", "type", "default", "meaning"), rows))
    return "\n".join(parts)


def parameters() -> str:
    """A section for each mechanism and learner."""
    parts = [PARAMETERS]
    for kind, known in (("Mechanism", MECHANISMS), ("Learner", LEARNERS)):
        for name, cls in known.items():
            documented = _inherited(cls)
            rows = [
                (f"`{key}`", _code(default), documented.get(key, ""))
                for key, default in (_fields(cls) if kind == "Mechanism" else _keywords(cls))
            ]
            parts.append(f"## {kind} `{name}`\n\n{inspect.getdoc(cls).splitlines()[0]}\n")
            parts.append(_table(("parameter", "default", "meaning"), rows) if rows else "")
    return "\n".join(parts)


def commands() -> str:
    """A section for each command of `admarket`."""
    group = typer.main.get_command(app)
    parts = [COMMANDS]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"admarket {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"## `admarket {name}`\n\n{inspect.cleandoc(command.help)}\n")
        parts.append(f"    admarket {name} {usage}\n")
        records = (each.get_help_record(context) for each in command.params)
        rows = [(f"`{' '.join(said.split())}`", meaning) for said, meaning in filter(None, records)]
        parts.append(_table(("argument", "meaning"), rows))
    return "\n".join(parts)


def described(docstring: str) -> dict[str, str]:
    """What a docstring's section `Attributes` or `Args` says of each name in it."""
    listed = re.search(r"^(?:Attributes|Args):\n((?:    .*\n|\n)+)", docstring + "\n", re.MULTILINE)
    if listed is None:
        return {}
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", listed[1], re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _inherited(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        found |= described(inspect.cleandoc(each.__dict__.get("__doc__") or ""))
    return found


def _fields(cls: type) -> Iterator[tuple[str, Any]]:
    for field in fields(cls):
        factory = field.default_factory
        yield field.name, field.default if factory is MISSING else factory()


def _keywords(cls: type) -> Iterator[tuple[str, Any]]:
    for key in inspect.signature(cls).parameters.values():
        if key.kind is key.KEYWORD_ONLY:
            yield key.name, MISSING if key.default is key.empty else key.default


def section(model: str) -> str:
    """The heading of a part of the scenario, by the keys that it stands under."""
    known = {
        "Scenario": "The scenario",
        "GroupSpec": "`population`",
        "StageSpec": "`warm_start` and `distill`",
    }
    return known.get(model, f"`{model.removesuffix('Spec').lower()}`")


def _opening(part: Mapping[str, Any]) -> str:
    return re.split(r"\n+Attributes:", part.get("description", ""))[0]


def _references(of: Mapping[str, Any]) -> list[str]:
    """Parts of the scenario that a key holds; not `Named`, of which the head of the page tells."""
    return [name for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(of)) if name != "Named"]


def _type(of: Mapping[str, Any]) -> str:
    """A JSON schema's type, in words."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        if name == "Named":
            return "name, or name and parameters"
        heading = section(name)
        return f"section [{heading}](#{heading.replace('`', '').replace(' ', '-')})"
    if "anyOf" in of:
        return " or ".join(_type(each) for each in of["anyOf"])
    if "enum" in of or "const" in of:
        return ", ".join(f"`{each}`" for each in of.get("enum", [of.get("const")]))
    if "prefixItems" in of:
        return f"{_type(of['prefixItems'][0])}, or a range `[low, high]`"
    if of.get("type") == "array":
        return f"list of: {_type(of['items'])}"
    words = {
        "integer": "whole number",
        "string": "text",
        "null": "none",
        "boolean": "true or false",
    }
    bounds = {
        "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"
    }  # fmt: skip
    limits = ", ".join(f"{sign} {of[name]:.10g}" for name, sign in bounds.items() if name in of)
    return f"{words.get(of['type'], of['type'])} {limits}".strip()


def _default(of: Mapping[str, Any]) -> str:
    given = of["default"]
    if isinstance(given, list) and len(given) == 2 and given[0] == given[1]:
        given = given[0]
    if isinstance(given, Mapping) and "name" in given:
        given = given if given["parameters"] else given["name"]
    if isinstance(given, Mapping | list) and _references(of):
        return "by key"
    return _code(given or None if isinstance(given, list) else given)


def _code(value: Any) -> str:
    if value is MISSING:
        return "**required**"
    return (
        "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`".replace('"', "")
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_escaped, line)) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    """With a backslash before bars, but not in code, where it would show."""
    return re.sub(r"`[^`]*`|\|", lambda found: r"\|" if found[0] == "|" else found[0], cell)

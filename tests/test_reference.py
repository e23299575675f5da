"""The site: reference pages are in step with the program, equations need no network to be seen."""

import importlib.util
import logging
import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from agents.learners import LEARNERS
from experiments.cli import app
from market import Scenario
from market.scenario import Named
from mechanisms import MECHANISMS

pytest.importorskip("mkdocs", reason="pages are built by mkdocs: install admarket[docs]")
ROOT = Path(__file__).parents[1]


def hook(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections(page):
    """By heading, the rows of its table: cells by what the first one holds."""
    found = {}
    for part in page.split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
        # a bar within code, or behind a backslash, separates no cells
        bar = r"(?<!\\)\|(?=(?:[^`]*`[^`]*`)*[^`]*$)"
        cells = [[cell.strip() for cell in re.split(bar, line)[1:-1]] for line in lines]
        found[heading] = {first.strip("`"): rest for first, *rest in cells}
    return found


def models(annotation):
    """The parts of a scenario that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation} - {Named}
    return set().union(*(models(each) for each in typing.get_args(annotation)))


def test_the_scenario_reference_has_every_key_with_type_default_and_meaning():
    reference = hook("reference")
    told = sections(reference.scenario())
    waiting, met = [Scenario], set()
    while waiting:
        model = waiting.pop()
        met.add(model)
        rows = told[reference.section(model.__name__)]
        assert list(rows) == list(model.model_fields), model
        for key, field in model.model_fields.items():
            kind, default, meaning = rows[key]
            assert kind and default and meaning, (model, key)
            assert (default == "**required**") == field.is_required(), (model, key)
            if isinstance(field.default, str | int | float):
                said = str(field.default)
                assert default.strip("`") == (said.lower() if said in ("True", "False") else said)
            waiting += models(field.annotation) - met
    assert len(told) == len(met)


def test_the_reference_has_every_parameter_with_its_meaning():
    told = sections(hook("reference").parameters())
    assert len(told) == len(MECHANISMS) + len(LEARNERS)
    for name, mechanism in MECHANISMS.items():
        assert list(told[f"Mechanism `{name}`"]) == [field.name for field in fields(mechanism)]
    for heading, rows in told.items():
        for key, (default, meaning) in rows.items():
            assert default and meaning, (heading, key)


def test_the_reference_has_every_command_and_option():
    told = sections(hook("reference").commands())
    group = typer.main.get_command(app)
    assert set(told) == {f"`admarket {name}`" for name in group.commands}
    for name, command in group.commands.items():
        rows = told[f"`admarket {name}`"]
        assert len(rows) == len(command.params) and all(meaning for (meaning,) in rows.values())
        for parameter, said in zip(command.params, rows, strict=True):
            option = parameter.param_type_name == "option"
            wanted = parameter.opts[0] if option else parameter.metavar or parameter.name
            assert wanted in said


def test_equations_that_cannot_be_set_are_refused():
    mathml = hook("mathematics").mathml
    assert mathml(r"\tau \log Z", display=False).count("<mspace") == 2
    with pytest.raises(ValueError, match="unheard"):
        mathml(r"\unheard{x}", display=True)
    with pytest.raises(ValueError, match="&"):
        mathml(r"\begin{aligned} a &= b \end{aligned}", display=True)


def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path, caplog, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    caplog.set_level(logging.INFO, logger="mkdocs")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    # its own: what else the process has to do, such as collecting a notebook's kernel, may warn too
    ours = [each for each in caplog.records if each.name.startswith("mkdocs")]
    assert ours and not [each for each in ours if each.levelno >= logging.WARNING]
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page
        fetched = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="?([^" >]+)', text)
        fetched += re.findall(r'<link\b[^>]*\bhref="?([^" >]+)', text)
        assert not [each for each in fetched if re.match(r"(?:https?:)?//", each)], page
    assert "<math" in (tmp_path / "mathematics.html").read_text(encoding="utf-8")

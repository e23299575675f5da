"""Writes a reproduction's folder: page, figures, tables, summary and manifest."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import polars as pl

from experiments import plots
from experiments.reproduce.mosaic_conclusions import Conclusion
from mechanisms.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parents[1] / "templates"


def write_page(
    folder: Path,
    *,
    title: str,
    label: str,
    facts: list[tuple[str, str]],
    conclusions: list[Conclusion],
    figures: Mapping[str, tuple[Figure, str]],
    tables: Mapping[str, pl.DataFrame],
    manifest: Mapping[str, Any],
) -> Path:
    """Write everything into `folder` in one step and return the page's path.

    Args:
        folder: replaced if it is an earlier reproduction.
        title: heading.
        label: who wrote the replies; stands next to the heading.
        facts: what was done, as name and value.
        conclusions: question by question.
        figures: by name, with captions.
        tables: written as Parquet.
        manifest: provenance.

    Raises:
        BadInput: `folder` cannot be written, or holds something else.
    """
    check_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        ready, old = Path(scratch) / "ready", Path(scratch) / "old"
        drawn = []
        for name, (figure, caption) in figures.items():
            path = plots.save(figure, ready / "figures" / f"{name}.png")
            data = base64.b64encode(path.read_bytes()).decode()
            drawn.append({"name": name, "data": data, "caption": caption})
        for name, table in tables.items():
            table.write_parquet(ready / f"{name}.parquet")
        for name, content in (
            ("summary", [asdict(each) for each in conclusions]),
            ("manifest", manifest),
        ):
            text = json.dumps(content, indent=2, sort_keys=True)
            (ready / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("reproduction.html").render(
            title=title, label=label, facts=facts, conclusions=conclusions, figures=drawn
        )
        (ready / "report.html").write_text(page, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        ready.rename(folder)
    return folder / "report.html"


def check_folder(folder: Path) -> None:
    """Make sure that a reproduction can be written to `folder`.

    Raises:
        BadInput: it cannot be made, or holds something else.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-"):
            there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise BadInput(
            f"--out {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    if there and not {"report.html", "summary.json", "convergence.parquet"} <= there:
        raise BadInput(f"--out {folder} holds something else; choose another folder")

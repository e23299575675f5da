"""The results folder of an inquiry: one page with verdicts on top, figures, tables, provenance.

Reproductions, audits, equilibria and comparisons end the same way: in a folder that is written
beside its final place and moved there when it is complete. It holds `report.html` (self-contained:
figures are embedded, there is no script, everything is escaped), `summary.json`, `manifest.json`,
`scenario.yaml` (where there is one), the tables as Parquet and the figures as PNG. A folder is
replaced only by the same inquiry; `manifest.json` tells what it was, and which files are its own.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from experiments import plots
from experiments.folders import put_back, swap
from experiments.report import number
from experiments.templating import template
from market.scenario import Scenario
from mechanisms.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["reproduction", "audit", "equilibrium", "comparison", "comparison of runs"]
Tone = Literal["good", "bad", "open", "plain"]
"""How a verdict looks: it holds, it fails, nobody knows yet, or nothing is judged."""


@dataclass(frozen=True)
class Subject:
    """What a folder is about; only the same inquiry may replace it.

    Attributes:
        kind: of inquiry.
        scenario: that it was made on; None for one that brings its own markets.
        seed: of what is random in it.
        asked: what else was chosen, in plain JSON types (mechanisms, learners, rounds, ...).
    """

    kind: Kind
    scenario: Scenario | None
    seed: int
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """As `manifest.json` has it."""
        return _plain(
            {
                "kind": self.kind,
                "scenario": self.scenario and self.scenario.model_dump(mode="json"),
                "seed": self.seed,
                "asked": self.asked,
            }
        )


@dataclass(frozen=True)
class Verdict:
    """A line of the table on top.

    Attributes:
        cells: what is judged, by what evidence, ...: one text per column but the last.
        verdict: in a word or two; the last column.
        tone: how it looks.
    """

    cells: tuple[str, ...]
    verdict: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Verdicts:
    """The table on top of the page.

    Attributes:
        columns: headings, with the one of the verdict's column last (it may be empty).
        rows: in the order of the page.
        note: below the table: what intervals are of, what verdicts mean, which thresholds.
        heading: of the section.
    """

    columns: tuple[str, ...]
    rows: Sequence[Verdict]
    note: str
    heading: str = "What was found"


@dataclass(frozen=True)
class Column:
    """A column of a table on the page.

    Attributes:
        name: in the frame. Where the frame also has `name_low` and `name_high`, they are shown as
            the interval of the number.
        heading: of the column.
        unit: below the heading.
        show: how numbers are written.
    """

    name: str
    heading: str
    unit: str = ""
    show: Callable[[float | None], str] = number


@dataclass(frozen=True, eq=False)
class Table:
    """A small table shown on the page (all data goes to Parquet anyway).

    Attributes:
        title: above it.
        frame: a row per line; text on the left, numbers on the right, nulls as dashes.
        columns: which to show, in order.
        note: below the title.
    """

    title: str
    frame: pl.DataFrame
    columns: Sequence[Column]
    note: str = ""


def write_page(
    folder: Path,
    subject: Subject,
    *,
    title: str,
    label: str,
    verdicts: Verdicts,
    facts: Sequence[tuple[str, str]],
    figures: Mapping[str, tuple[Figure, str]],
    tables: Mapping[str, pl.DataFrame],
    manifest: Mapping[str, Any],
    summary: Any,
    shown: Sequence[Table] = (),
) -> Path:
    """Write everything into `folder` in one step and return the page's path.

    Args:
        folder: replaced if it holds an earlier result of the same inquiry.
        subject: what it is about.
        title: heading.
        label: who wrote the replies (`experiments.report.replies_label`), next to the heading.
        verdicts: the table on top.
        facts: what was done, as name and value, at the end.
        figures: by file name without suffix, with captions.
        tables: written as Parquet, by file name without suffix.
        manifest: provenance, beside the subject (`experiments.provenance.where` and more).
        summary: what `summary.json` holds, in plain types; NaN and infinity become null.
        shown: small tables for the page.

    Raises:
        BadInput: see `check_folder`.
    """
    check_folder(folder, subject)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        ready = Path(scratch) / "ready"
        ready.mkdir()
        drawn = []
        for name, (figure, caption) in figures.items():
            path = plots.save(figure, ready / "figures" / f"{name}.png")
            data = base64.b64encode(path.read_bytes()).decode()
            drawn.append({"data": data, "caption": caption})
        for name, table in tables.items():
            table.write_parquet(ready / f"{name}.parquet")
        if subject.scenario is not None:
            (ready / "scenario.yaml").write_text(subject.scenario.to_yaml(), encoding="utf-8")
        _write_json(ready / "summary.json", summary)
        page = _render(
            title=title, label=label, verdicts=verdicts, facts=facts, figures=drawn,
            shown=[_lines(table) for table in shown],
        )  # fmt: skip
        (ready / "report.html").write_text(page, encoding="utf-8")
        files = sorted([*_contents(ready), "manifest.json"])
        _write_json(ready / "manifest.json", {**manifest, **subject.identity, "files": files})
        swap(ready, folder)
    return folder / "report.html"


def check_folder(folder: Path, subject: Subject) -> None:
    """Make sure that results can be written to `folder`, before anything is computed.

    Raises:
        BadInput: it cannot be made, or holds anything but an earlier result of the same inquiry.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-"):
            put_back(folder)
            there = _contents(folder) if folder.exists() and any(folder.iterdir()) else []
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written ({error.strerror}); give another folder by --out"
        ) from None
    if not there:
        return
    earlier = _manifest(folder)
    if earlier is not None and any(
        earlier.get(key) != value for key, value in subject.identity.items()
    ):
        kind = earlier.get("kind", "result")
        raise BadInput(f"{folder}: holds another {kind}; give another folder by --out")
    own = set(earlier["files"]) if earlier is not None else set()
    foreign = [name for name in there if name not in own]
    if foreign:
        raise BadInput(
            f"{folder}: holds {foreign[0]}, which is no part of this {subject.kind}; "
            "give another folder by --out"
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What an earlier inquiry wrote; None if there was none."""
    try:
        found = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("files"), list) else None


def _contents(folder: Path) -> list[str]:
    """Files and empty folders below `folder`, as sorted paths within it."""
    found = (path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _lines(table: Table) -> dict[str, Any]:
    """A table as the template wants it: headings, and lines of cells."""
    frame = table.frame

    def cell(row: Mapping[str, Any], column: Column) -> dict[str, Any]:
        value, low, high = (row.get(f"{column.name}{end}") for end in ("", "_low", "_high"))
        if not frame.schema[column.name].is_numeric():
            return {"text": "–" if value is None else str(value), "interval": ""}
        both = low is not None and high is not None
        interval = f"[{column.show(low)}, {column.show(high)}]" if both else ""
        return {"text": column.show(value), "interval": interval}

    return {
        "title": table.title,
        "note": table.note,
        "columns": [
            {
                "heading": each.heading,
                "unit": each.unit,
                "right": frame.schema[each.name].is_numeric(),
            }
            for each in table.columns
        ],
        "rows": [
            [cell(row, each) for each in table.columns] for row in frame.iter_rows(named=True)
        ],
    }


def _render(**content: Any) -> str:
    return template("page.html").render(**content)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Only what JSON knows: no NumPy scalars, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value

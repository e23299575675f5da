"""Writes a reproduction's folder: page, figures, tables, summary and manifest."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import polars as pl

from experiments import plots
from experiments.bootstrap import Estimate
from market.scenario import Scenario
from mechanisms.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parents[1] / "templates"
FEWEST = 10
"""Requests below which nothing is concluded."""
Verdict = Literal["agrees", "differs", "open", "figures only"]


@dataclass(frozen=True)
class Conclusion:
    """One question of a paper's, and the answer found here.

    Attributes:
        question: which of the paper's.
        paper: what the paper says.
        found: what was found, with 95 % intervals.
        verdict: see `judge`; `figures only` where nothing is judged.
    """

    question: str
    paper: str
    found: str
    verdict: Verdict


def judge(requests: int, *claims: Estimate, given: Collection[Estimate] = ()) -> Verdict:
    """`agrees` if all claims hold, `differs` if the opposite of one does, else `open`.

    Args:
        requests: that intervals are over; of fewer than `FEWEST` nothing is concluded.
        claims: quantities that are above 0 if the paper is right.
        given: quantities above 0 where agreement means something; else it is withheld.
    """
    if requests < FEWEST:
        return "open"
    if any(claim.high < 0 for claim in claims):
        return "differs"
    return "agrees" if all(each.low > 0 for each in (*claims, *given)) else "open"


def write_page(
    folder: Path,
    *,
    scenario: Scenario,
    seed: int,
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
        folder: replaced if it is an earlier reproduction of this scenario and seed.
        scenario: what was reproduced on.
        seed: of the analysis.
        title: heading.
        label: who wrote the replies; stands next to the heading.
        facts: what was done, as name and value.
        conclusions: question by question.
        figures: by name, with captions.
        tables: written as Parquet.
        manifest: provenance, beside scenario and seed.

    Raises:
        BadInput: see `check_folder`.
    """
    check_folder(folder, scenario, seed, contents(figures, tables))
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
            ("manifest", {**manifest, **_identity(scenario, seed)}),
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
            title=title,
            label=label,
            facts=facts,
            conclusions=conclusions,
            figures=drawn,
            fewest=FEWEST,
        )
        (ready / "report.html").write_text(page, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        ready.rename(folder)
    return folder / "report.html"


def contents(figures: Collection[str], tables: Collection[str]) -> frozenset[str]:
    """All that a reproduction's folder holds, as paths within it."""
    pages = ("report.html", "summary.json", "manifest.json", "figures")
    drawn = (f"figures/{name}.png" for name in figures)
    return frozenset([*pages, *drawn, *(f"{name}.parquet" for name in tables)])


def check_folder(folder: Path, scenario: Scenario, seed: int, known: Collection[str]) -> None:
    """Make sure that a reproduction can be written to `folder`.

    Args:
        folder: where to.
        scenario: what is reproduced on.
        seed: of the analysis.
        known: `contents` of such a folder.

    Raises:
        BadInput: it cannot be made, or holds anything but an earlier reproduction on this scenario
            with this seed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-"):
            empty = not folder.exists() or not any(folder.iterdir())
            there = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
            foreign = None if empty else next((name for name in there if name not in known), None)
    except OSError as error:
        raise BadInput(
            f"--out {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    if foreign is not None:
        raise BadInput(
            f"--out {folder} holds {foreign}, which is no part of a reproduction; "
            "choose another folder"
        )
    if not empty and not _same(folder, scenario, seed):
        raise BadInput(f"--out {folder} holds another reproduction; choose another folder")


def _same(folder: Path, scenario: Scenario, seed: int) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        return {key: manifest[key] for key in ("scenario", "seed")} == _identity(scenario, seed)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _identity(scenario: Scenario, seed: int) -> dict[str, Any]:
    return {"scenario": scenario.model_dump(mode="json"), "seed": seed}

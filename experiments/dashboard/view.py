"""What the page shows, as pictures and HTML; it knows nothing of how pages are served.

Titles, queries and replies are other people's text and may be hostile: the template escapes
everything, and pictures are drawn by matplotlib with mathematics off.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments import plots
from experiments.measures import BIDS, MEASURES
from experiments.report import number, replies_label
from experiments.report.records import Records
from experiments.report.wording import bracket
from experiments.samples import SampleReply
from experiments.templating import TEMPLATES, template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NARROWER = 0.82
"""Width of a picture to that of the report's: it stands beside replies, and words stay readable."""
_DRAWING = threading.Lock()  # the style is matplotlib's, hence the whole process's
TOTALS = ("revenue", "welfare", "user_satisfaction", "ads_per_reply")


@dataclass(frozen=True)
class Tile:
    """A number of a mechanism: what, in which unit, and its interval."""

    what: str
    unit: str
    number: str
    interval: str


def tiles(summary: Mapping[str, Any]) -> list[Tile]:
    """The numbers of one mechanism, from its part of a `Result.summary`."""
    found = {name: summary[name] for name in TOTALS}
    found |= {
        f"bid_{kind}": summary["objectives"][kind][column]
        for kind, column in BIDS.items()
        if kind in summary["objectives"]
    }
    return [
        Tile(
            MEASURES[name].label,
            MEASURES[name].unit,
            number(each["mean"]),
            bracket(each) if each["low"] is not None else "",
        )
        for name, each in found.items()
    ]


def pictures(
    rounds: pl.DataFrame, advertisers: pl.DataFrame, best: pl.DataFrame | None = None
) -> list[tuple[str, str]]:
    """The figures of a run, each with what it shows: (data URL, alternative text)."""
    with _DRAWING:
        return [
            (_data_url(plots.bid_trajectories(advertisers, best)), "Bids over rounds"),
            (_data_url(plots.market_over_rounds(rounds)), "Revenue, welfare, user satisfaction"),
        ]


def header(
    title: str, replies: Mapping[str, Any], facts: Sequence[str], notes: Sequence[str] = ()
) -> str:
    """Heading of the page: what is shown, on which replies (a pool's manifest), and how much."""
    return _render("header", title=title, source=replies_label(replies), facts=facts, notes=notes)


def numbers(by_mechanism: Mapping[str, Mapping[str, Any]]) -> str:
    """Tiles of numbers, a row per mechanism, from a `Result.summary`."""
    first = next(iter(by_mechanism.values()), None)
    rows = {name: tiles(part) for name, part in by_mechanism.items()}
    return _render("numbers", rows=rows, first=first, welfare=MEASURES["welfare"].meaning)


def reply(sample: SampleReply | None, heading: str, missing: str = "") -> str:
    """A reply with its ads marked and priced; or why there is none."""
    return _render("reply", sample=sample, heading=heading, missing=missing)


def figures(drawn: Sequence[tuple[str, str]]) -> str:
    """Pictures below each other."""
    return _render("figures", drawn=drawn)


def produced(run: Records) -> dict[str, str]:
    """What a finished run was made by and of, from its manifest."""
    manifest = run.manifest
    versions, machine = (manifest.get(name) or {} for name in ("versions", "hardware"))
    pools = manifest.get("pool_hash_by_mechanism") or {"": manifest.get("pool_hash")}
    told = {
        "folder": run.folder.name,
        "scenario": run.scenario.get("name"),
        "seed": manifest["seed"],
        "admarket": versions.get("admarket"),
        "revision": manifest.get("revision"),
        "Python": manifest.get("python"),
        "kernel": manifest.get("kernel"),
        "machine": machine.get("processor"),
        **{f"replies {name}".strip(): str(hash)[:16] for name, hash in pools.items()},
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def facts(told: Mapping[str, str], heading: str) -> str:
    """Names and values in a list."""
    return _render("facts", told=told, heading=heading)


def style() -> str:
    """The style sheet of all of these, which is told to nothing else on the page."""
    return (TEMPLATES / "dashboard.css").read_text("utf-8")


def narrowed(figure: Figure) -> Figure:
    """The figure as wide as its place on the page, with fewer numbers below it."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(NARROWER * width, height)
    for ax in figure.axes:
        if ax.get_xscale() == "linear":
            ax.locator_params(axis="x", nbins=3)
    return figure


def _data_url(figure: Figure) -> str:
    held = io.BytesIO()
    with plots.style():
        narrowed(figure).savefig(held, dpi=140, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def _render(macro: str, **given: Any) -> str:
    return str(getattr(_macros(), macro)(**given))


@cache
def _macros() -> Any:
    return template("dashboard.html", number=number).module

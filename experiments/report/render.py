"""From a folder's records to its figures and its page.

The page needs nothing else, for reading and for print: figures are embedded, styles are inline,
there is no script, and a content security policy keeps it from loading anything. Titles, queries
and replies are other people's text and may be hostile: the template escapes everything.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import plots
from experiments.equilibrium.diagnosis import EXPLOITABILITY, MOVEMENT
from experiments.measures import MEASURES
from experiments.periods import over_periods
from experiments.report.captions import alternative, caption
from experiments.report.records import Records
from experiments.report.rows import advertiser_tables, period_rows, rows, unsettled
from experiments.report.summary import sentences
from experiments.report.wording import (
    bracket,
    counted,
    estimates_label,
    facts_of,
    flat,
    number,
    percent,
    replies_label,
)
from experiments.templating import template
from mechanisms.errors import BadInput

EARLIER = "report-earlier.html"
"""Where a page is kept that tells more than the folder's other files do."""


def build(folder: Path) -> Path:
    """Draw the figures of the run in `folder` and write its page; returns the page's path.

    Raises:
        BadInput: see `Records.read`.
    """
    return _write(Records.read(folder), folder)


def rebuild(folder: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The same for a finished run; its figures and page are replaced when the new ones are there.

    Where the folder is of an earlier version, whose page tells what no other file does, that page
    is kept as `EARLIER`, and `say` is told what the new one lacks.

    Raises:
        BadInput: see `Records.read`; or the folder cannot be written.
    """
    run = Records.read(folder)
    page = folder / "report.html"
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            made = _write(run, Path(scratch))
            if run.missing:
                say(f"{folder} is of an earlier version; it lacks {', '.join(run.missing)}")
                if page.exists() and not (folder / EARLIER).exists():
                    os.replace(shutil.copyfile(page, Path(scratch) / EARLIER), folder / EARLIER)
                    say(f"the page that was there is kept as {folder / EARLIER}")
            (folder / "figures").mkdir(exist_ok=True)
            for figure in Path(scratch).glob("figures/*.png"):
                os.replace(figure, folder / "figures" / figure.name)
            os.replace(made, page)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror})") from None
    return page


def _write(run: Records, into: Path) -> Path:
    """Figures and page of a run, into a folder of any name."""
    figures = {
        name: plots.save(figure, into / "figures" / f"{name}.png")
        for name, figure in _drawn(run).items()
    }
    page = into / "report.html"
    page.write_text(_page(run, figures), encoding="utf-8")
    return page


def _drawn(run: Records) -> dict[str, Any]:
    """The figures by name."""
    drawn = {
        "bids": plots.bid_trajectories(run.advertisers, run.best),
        "market": plots.market_over_rounds(run.rounds),
        "advertisers": plots.payments_and_roi(run.advertisers),
    }
    if run.plans is not None:
        people = run.advertisers.unique("advertiser").sort("advertiser")
        drawn["periods"] = over_periods(
            run.plans, people["title"].to_list(), people["value"].to_list()
        )
    return drawn


def _page(run: Records, figures: dict[str, Path]) -> str:
    return template("report.html", number=number, bracket=bracket).render(
        title=run.title,
        replies_label=source(run),
        scale=scale(run),
        labels=run.labels,
        summary=sentences(run),
        rows=list(rows(run)),
        periods=list(period_rows(run.plans, run.scenario)),
        planning=[] if run.plans is None else run.plans["mechanism"].unique(maintain_order=True),
        figures=[
            {
                "data": base64.b64encode(path.read_bytes()).decode("ascii"),
                "caption": caption(run, name),
                "alternative": alternative(run, name),
            }
            for name, path in figures.items()
        ],
        samples=run.samples,
        advertisers=advertiser_tables(run),
        unsettled=unsettled(run.best),
        pools=pools(run),
        manifest=list(flat({k: v for k, v in run.manifest.items() if k not in ("pool", "pools")})),
        missing=run.missing,
        limits=[percent(limit) for limit in (MOVEMENT, EXPLOITABILITY)],
        scenario=run.scenario_text,
        welfare=MEASURES["welfare"].meaning,
    )


def source(run: Records) -> str:
    """Who wrote the replies and what is estimated, to stand next to every result."""
    anew = ", anew in every round" if run.manifest.get("replies") == "live" else ""
    told = run.pool_manifest or {"model": run.manifest.get("model")}
    return replies_label(told) + anew + estimates_label(run.manifest)


def scale(run: Records) -> str:
    """How much was run, in a line."""
    parts = [counted(int(run.scenario["rounds"]), "round")]
    if per_round := run.scenario.get("requests_per_round"):
        parts.append(f"{counted(per_round, 'request')} a round")
    parts += [
        counted(run.replications, "replication"),
        counted(run.advertisers["advertiser"].n_unique(), "advertiser"),
        counted(len(run.labels), "mechanism"),
    ]
    return " · ".join(parts)


def pools(run: Records) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts of each pool that was traded on, with the mechanisms that did."""
    kept = run.manifest.get("pools")
    if not kept:
        facts = [(f"manifest: {name}", value) for name, value in flat(run.pool_manifest)]
        return [(", ".join(run.labels), facts)]
    return [
        (", ".join(each["mechanisms"]), facts_of(each["measures"], each["manifest"]))
        for each in kept
    ]

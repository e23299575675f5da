"""The report of a run: one HTML page that needs nothing else, for reading and for print.

Figures are embedded, styles are inline, there is no script, and a content security policy keeps the
page from loading anything. Titles, queries and replies are other people's text and may be hostile:
the template escapes everything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import polars as pl
import yaml

from experiments.periods import CAPTION as PERIODS
from experiments.periods import measured
from experiments.plots import CAPTIONS, OBJECTIVES
from experiments.samples import SampleReply
from experiments.tables import best_means, by_advertiser, unbounded
from market.result import Result
from mechanisms.pool import ReplyPool

TEMPLATES = Path(__file__).parent / "templates"
MEASURES = {
    "revenue": ("Revenue", "money per request, realised"),
    "welfare": ("Welfare", "money per request, expected"),
    "regularised_welfare": ("Regularised welfare", "money per request, expected"),
    "user_satisfaction": ("User satisfaction", "per reply, 0 to 1, expected"),
    "ads_per_reply": ("Ads per reply", "expected"),
    "clicks": ("Clicks", "per request, realised"),
    "kl": ("Distance from the reference LLM", "KL, nats per reply"),
}
BIDS = {
    "utility": ("bid_over_value", "bid / value"),
    "value": ("bid_over_truthful", "bid × target ROI / value"),
}


@dataclass(frozen=True)
class Cell:
    """A number of a table with its interval, and the best response where there is one."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    converged: bool = True
    unbounded: int = 0


@dataclass(frozen=True)
class Row:
    """A line of the table of mechanisms: what, in which unit, a cell per mechanism."""

    name: str
    unit: str
    cells: list[Cell]


def write_report(
    folder: Path,
    *,
    title: str,
    scenario: Mapping[str, Any],
    manifest: Mapping[str, Any],
    result: Result,
    best: pl.DataFrame | None,
    samples: Mapping[str, Sequence[SampleReply]],
    figures: Mapping[str, Path],
    pool: ReplyPool,
    plans: pl.DataFrame | None = None,
) -> Path:
    """Write `report.html` into `folder` and return its path.

    Args:
        folder: made if it does not exist.
        title: heading of the page.
        scenario: as resolved; `rounds`, `requests_per_round` and `replications` are told in the
            head, all of it at the end.
        manifest: provenance: seed, versions, hashes, hardware; shown as it is.
        result: one or several mechanisms side by side.
        best: `BestResponse.labelled` frames stacked, if computed.
        samples: sample replies by mechanism.
        figures: PNG files by name; captions come from `plots.CAPTIONS`, else the name is one.
        pool: what was traded on.
        plans: of `experiments.periods.plans_frame`, if a mechanism plans for periods.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": bracket}
    labels, captions = list(result.summary), CAPTIONS | {"periods": PERIODS}
    page = environment.get_template("report.html").render(
        title=title,
        replies_label=replies_label(pool.manifest)
        + (", anew in every round" if manifest.get("replies") == "live" else "")
        + estimates_label(manifest),
        scale=scale(scenario, result),
        labels=labels,
        findings=list(findings(result, best)),
        rows=list(rows(result, best)),
        periods=list(period_rows(plans, scenario)),
        planning=[] if plans is None else plans["mechanism"].unique(maintain_order=True).to_list(),
        figures=[
            {"name": name, "data": _embedded(path), "caption": captions.get(name, name)}
            for name, path in figures.items()
        ],
        samples=samples,
        advertisers=advertiser_tables(result, best, labels),
        unsettled=unsettled(best),
        pool=pool_facts(pool),
        manifest=list(flat(manifest)),
        scenario=yaml.safe_dump(_plain(scenario), sort_keys=False, allow_unicode=True),
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def findings(result: Result, best: pl.DataFrame | None) -> Iterator[tuple[str, str]]:
    """Plain sentences on bids and on the market: what of, and what was found by mechanism."""
    for kind, (column, ratio) in BIDS.items():
        parts = []
        for label, part in result.summary.items():
            found = part["objectives"].get(kind, {}).get(column)
            if not found or found["mean"] is None:
                continue
            cell = _cell(found, best, label, kind)
            parts.append(f"{number(cell.mean)} {bracket(cell)} under {label}{_beside(cell)}")
        if parts:
            yield f"{OBJECTIVES[kind]} bid", f"({ratio}; truthful = 1): {'; '.join(parts)}."
    for name in ("revenue", "welfare", "user_satisfaction"):
        what, unit = MEASURES[name]
        parts = [
            f"{number(part[name]['mean'])} {bracket(part[name])} under {label}"
            for label, part in result.summary.items()
        ]
        yield what, f"({unit}): {'; '.join(parts)}."


def rows(result: Result, best: pl.DataFrame | None) -> Iterator[Row]:
    """The table of mechanisms side by side."""
    parts = result.summary
    for name, (what, unit) in MEASURES.items():
        if any(part[name]["mean"] is not None for part in parts.values()):
            yield Row(what, unit, [_cell(part[name]) for part in parts.values()])
    for kind, (column, ratio) in BIDS.items():
        if any(kind in part["objectives"] for part in parts.values()):
            who = OBJECTIVES[kind]
            found = [(m, part["objectives"].get(kind, {})) for m, part in parts.items()]
            cells = [_cell(of.get(column), best, label, kind) for label, of in found]
            yield Row(f"{who}: bid", f"{ratio}; truthful = 1", cells)
            if kind == "value":
                cells = [_cell(of.get("roi_over_target")) for _, of in found]
                yield Row(f"{who}: ROI", "ROI / target ROI, expected", cells)


def period_rows(plans: pl.DataFrame | None, scenario: Mapping[str, Any]) -> Iterator[Row]:
    """What was planned for periods, a row per measure; none under mechanisms without."""
    if plans is not None:
        for what, unit, found in measured(plans, int(scenario.get("rounds", 0))):
            yield Row(what, unit, [_cell(each) for each in found.values()])


def advertiser_tables(
    result: Result, best: pl.DataFrame | None, labels: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """By mechanism, a row per advertiser, with its best response where there is one."""
    table = by_advertiser(result.advertisers)
    if best is not None:
        truthful = pl.when(pl.col("objective") == "value").then(pl.col("bid_over_target"))
        ratio = truthful.otherwise(pl.col("bid_over_value")).alias("best")
        told = best.select("mechanism", "advertiser", ratio, "note")
        table = table.join(told, on=["mechanism", "advertiser"], how="left", maintain_order="left")
    else:
        table = table.with_columns(best=pl.lit(None, pl.Float64), note=pl.lit(""))
    return {
        label: table.filter(pl.col("mechanism") == label)
        .sort("objective", "advertiser", maintain_order=True)
        .to_dicts()
        for label in labels
    }


def unsettled(best: pl.DataFrame | None) -> list[str]:
    """Mechanisms whose best responses did not converge."""
    if best is None or "converged" not in best.columns:
        return []
    return best.filter(~pl.col("converged"))["mechanism"].unique().to_list()


def scale(scenario: Mapping[str, Any], result: Result) -> str:
    """How much was run, in a line."""
    first = next(iter(result.summary.values()))
    count = result.advertisers["advertiser"].n_unique()
    parts = [_count(first["rounds"], "round")]
    if per_round := scenario.get("requests_per_round"):
        parts.append(f"{_count(per_round, 'request')} a round")
    parts += [_count(first["replications"], "replication"), _count(count, "advertiser")]
    parts.append(_count(len(result.summary), "mechanism"))
    return " · ".join(parts)


def replies_label(manifest: Mapping[str, Any]) -> str:
    """Who wrote the replies, to stand next to every result."""
    source, model = manifest.get("source"), manifest.get("model")
    if source == "synthetic":
        return "replies: synthetic, no LLM"
    if isinstance(model, Mapping):
        model = model.get("name") or model.get("id") or model.get("model")
    if not model:
        return f"replies: {source or 'source not stated'}, model not stated"
    size = re.search(r"(?<![a-z0-9])(\d+(?:\.\d+)?)([mb])(?![a-z])", str(model), re.IGNORECASE)
    words = f", a {size[1]}{size[2].upper()}-parameter model" if size else ""
    return f"replies written by {model}{words}"


def estimates_label(manifest: Mapping[str, Any]) -> str:
    """By what it is estimated what other bids would bring, where it is not exact."""
    found = manifest.get("estimates") or {}
    told = "; ".join(f"{name} by its {said['estimate']}" for name, said in found.items())
    return f" · what other bids would bring: {told}" if told else ""


def pool_facts(pool: ReplyPool) -> list[tuple[str, str]]:
    """What was traded on, as name and value."""
    B, M, n = pool.shape
    shown = pool.exposure.any(axis=2).mean()
    ess = pool.effective_sample_size
    facts = [
        ("Replies", replies_label(pool.manifest).removeprefix("replies: ")),
        ("Requests", f"{B:,}"),
        ("Candidate replies per request", f"{M:,} ({B * M:,} in all)"),
        ("Candidate ads per request", f"{n} of {pool.num_advertisers} advertisers"),
        ("Candidate replies with an ad", f"{100 * shown:.1f} %"),
        ("Ads per candidate reply", f"{pool.exposure.sum(axis=2).mean():.2f} (mean)"),
        ("Malformed mentions per reply", f"{pool.malformed.mean():.3f} (mean)"),
        (
            "Effective sample size of the weights",
            f"median {np.median(ess):.1f}, least {ess.min():.1f}, of {M} replies a request",
        ),
        ("SHA-256", pool.content_hash),
    ]
    told = [(f"manifest: {name}", value) for name, value in flat(pool.manifest)]
    return facts + told


def flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (dotted name, value)."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def number(x: float | None) -> str:
    """Three significant figures without exponents, at most four decimals; a dash for no number."""
    if x is None or not np.isfinite(x):
        return "–"
    if 0 < abs(x) < 1e-4:
        return "<0.0001" if x > 0 else ">−0.0001"
    x = float(f"{x:.3g}") if abs(x) < 1000 else x
    if x == 0 or abs(x) >= 100:
        return f"{x:,.0f}".replace("-", "−")
    decimals = min(4, 2 - int(np.floor(np.log10(abs(x)))))
    return f"{x:.{decimals}f}".replace("-", "−")


def bracket(found: Cell | Mapping[str, Any]) -> str:
    """`[low, high]`, or why there is none."""
    low, high = (
        (found.low, found.high) if isinstance(found, Cell) else (found["low"], found["high"])
    )
    if low is None or high is None:
        return "[no interval from one]"
    return f"[{number(low)}, {number(high)}]"


def _cell(
    found: Mapping[str, Any] | None,
    best: pl.DataFrame | None = None,
    label: str = "",
    kind: str = "",
) -> Cell:
    if not found:
        return Cell(None)
    reference = best_means(best, label, kind) if best is not None else None
    settled = reference is None or label not in unsettled(best)
    open_ended = unbounded(best, label, kind) if best is not None else 0
    return Cell(found["mean"], found["low"], found["high"], reference, settled, open_ended)


def _beside(cell: Cell) -> str:
    if cell.best is None:
        return ""
    if not cell.converged:
        return " (best response did not converge)"
    if cell.unbounded:
        return (
            f" (best response {number(cell.best)} without {cell.unbounded} whose target never "
            "binds: for them higher is always better, and they sit at the cap)"
        )
    return f" (best response {number(cell.best)})"


def _count(number_of: int, what: str) -> str:
    return f"{number_of:,} {what}{'' if number_of == 1 else 's'}"


def _embedded(path: Path) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode("ascii")


def _plain(value: Any) -> Any:
    """Only what YAML knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

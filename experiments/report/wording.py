"""How numbers, intervals and the source of replies are told, everywhere the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # of which pydantic makes checks before Python 3.12

from mechanisms.pool import ReplyPool

SHOWN = 1e-4
"""The least that a number with four decimals shows."""
_SCALES = {"m": 1e6, "b": 1e9}


def number(x: float | None) -> str:
    """Three significant figures without exponents, at most four decimals; a dash for no number."""
    if x is None or not np.isfinite(x):
        return "–"
    if 0 < abs(x) < SHOWN:
        return "<0.0001" if x > 0 else ">−0.0001"
    x = float(f"{x:.3g}") if abs(x) < 1000 else x
    if x == 0 or abs(x) >= 100:
        return f"{x:,.0f}".replace("-", "−")
    decimals = min(4, 2 - int(np.floor(np.log10(abs(x)))))
    return f"{x:.{decimals}f}".replace("-", "−")


def percent(fraction: float | None) -> str:
    """A fraction in per cent, with three figures; a dash for no number."""
    return "–" if fraction is None else f"{number(100 * fraction)}\u00a0%"


def bracket(found: Mapping[str, Any], scale: float = 1.0) -> str:
    """`[low, high]` of an interval (`market.result.interval`), unbroken, or why there is none."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return "[no interval from one]"
    return f"[{_end(scale * low)},\u00a0{_end(scale * high)}]"


def _end(x: float) -> str:
    """An end of an interval, in which signs of inequality would be misread."""
    return f"{x:.4f}".replace("-", "−") if 0 < abs(x) < SHOWN else number(x)


def told(found: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    return f"{number(found['mean'])} {bracket(found)}"


def told_difference(found: Mapping[str, Any]) -> str:
    """A difference with its interval; where it is too small to be shown, within which it lies."""
    low, high = found["low"], found["high"]
    if low is None or high is None or not 0 < abs(found["mean"]) < SHOWN:
        return told(found)
    reach = number(max(abs(low), abs(high)) + SHOWN)  # no rounding makes it less than it is
    return f"between −{reach} and {reach}"


def told_percent(found: Mapping[str, Any]) -> str:
    """A mean fraction with its interval, in per cent."""
    return f"{percent(found['mean'])} {bracket(found, 100)}"


def counted(count: int, what: str) -> str:
    """`1 round`, `2,000 rounds`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def model_name(manifest: Mapping[str, Any]) -> str | None:
    """The LLM that wrote a pool's replies; None if none did or its manifest does not say."""
    model = manifest.get("model")
    if isinstance(model, Mapping):
        model = model.get("name") or model.get("id") or model.get("model")
    return str(model) if model else None


def parameters(model: str) -> tuple[str, float] | None:
    """How many parameters a model's name says it has, as written and as a number."""
    size = re.search(r"(?<![a-z0-9])(\d+(?:\.\d+)?)([mb])(?![a-z])", model, re.IGNORECASE)
    if size is None:
        return None
    return f"{size[1]}{size[2].upper()}", float(size[1]) * _SCALES[size[2].lower()]


def replies_label(manifest: Mapping[str, Any]) -> str:
    """Who wrote the replies, to stand next to every result."""
    source, model = manifest.get("source"), model_name(manifest)
    if source == "synthetic":
        return "replies: synthetic, no LLM"
    if not model:
        return f"replies: {source or 'source not stated'}, model not stated"
    size = parameters(model)
    words = f", a {size[0]}-parameter model" if size else ""
    return f"replies written by {model}{words}"


def estimates_label(manifest: Mapping[str, Any]) -> str:
    """By what it is estimated what other bids would bring, where it is not exact."""
    found = manifest.get("estimates") or {}
    words = "; ".join(f"{name} by its {said['estimate']}" for name, said in found.items())
    return f" · what other bids would bring: {words}" if words else ""


class PoolMeasures(TypedDict):
    """What a page tells of a pool, as JSON holds it.

    `satisfaction_without_ads` is the mean over requests of the satisfaction with replies that show
    no ad, by reference weight; None where there are none.
    """

    requests: int
    replies: int
    ads: int
    advertisers: int
    with_an_ad: float
    ads_per_reply: float
    malformed_per_reply: float
    effective_sample_size_median: float
    effective_sample_size_min: float
    satisfaction_without_ads: float | None
    content_hash: str


def pool_measures(pool: ReplyPool) -> PoolMeasures:
    """The measures of a pool."""
    B, M, n = pool.shape
    ess = pool.effective_sample_size
    bare = ~pool.exposure.any(axis=2)
    log_weights = pool.log_weights if pool.weighted else np.zeros((B, M))
    weights = np.where(bare, np.exp(log_weights - log_weights.max(axis=1, keepdims=True)), 0.0)
    some = weights.sum(axis=1) > 0
    quality = (weights * pool.quality).sum(axis=1)[some] / weights.sum(axis=1)[some]
    return {
        "requests": B,
        "replies": M,
        "ads": n,
        "advertisers": pool.num_advertisers,
        "with_an_ad": float(1 - bare.mean()),
        "ads_per_reply": float(pool.exposure.sum(axis=2).mean()),
        "malformed_per_reply": float(pool.malformed.mean()),
        "effective_sample_size_median": float(np.median(ess)),
        "effective_sample_size_min": float(ess.min()),
        "satisfaction_without_ads": float(quality.mean()) if some.any() else None,
        "content_hash": pool.content_hash,
    }


def pool_facts(pool: ReplyPool) -> list[tuple[str, str]]:
    """What was traded on, as name and value."""
    return facts_of(pool_measures(pool), pool.manifest)


def facts_of(measures: PoolMeasures, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same from what `pool_measures` gave and the pool's manifest."""
    B, M = measures["requests"], measures["replies"]
    facts = [
        ("Replies", replies_label(manifest).removeprefix("replies: ")),
        ("Requests", f"{B:,}"),
        ("Candidate replies per request", f"{M:,} ({B * M:,} in all)"),
        (
            "Candidate ads per request",
            f"{measures['ads']} of {measures['advertisers']} advertisers",
        ),
        ("Candidate replies with an ad", f"{100 * measures['with_an_ad']:.1f} %"),
        ("Ads per candidate reply", f"{measures['ads_per_reply']:.2f} (mean)"),
        ("Malformed mentions per reply", f"{measures['malformed_per_reply']:.3f} (mean)"),
        (
            "Effective sample size of the weights",
            f"median {measures['effective_sample_size_median']:.1f}, least "
            f"{measures['effective_sample_size_min']:.1f}, of {M} replies a request",
        ),
        ("SHA-256", measures["content_hash"]),
    ]
    return facts + [(f"manifest: {name}", value) for name, value in flat(manifest)]


def flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (dotted name, value)."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)

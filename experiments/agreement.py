"""Do two models of the user agree? Click probabilities of the same shown ads, side by side.

Over the pairs (reply, ad shown in it) of a recorded pool, with p and q the click probabilities that
the two models give:

- **Spearman's rank correlation** of p and q, over all pairs, and as the mean within requests, where
  an auction compares ads;
- **AUC** of q for the clicks of p (and of p for those of q): the probability that a pair clicked
  has the larger q than one not clicked. Exact in expectation over clicks, with Σ over pairs i ≠ j,

      AUC = Σ p_i (1 - p_j) ([q_i > q_j] + [q_i = q_j]/2) / Σ p_i (1 - p_j);

  clicks are chance, so p itself reaches no more than the *ceiling*, given beside it;
- **Cohen's kappa** (1960) of "among the `top` share most likely clicked", each by its own measure:
  levels are not compared, since the level of a User-LLM's clicks may be a setting.

Intervals are 95 %. Replies to a request are alike, so requests are resampled, not pairs (percentile
bootstrap, short where requests are few); the mean within requests has a t-interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
from scipy.stats import rankdata

from agents.judge import JudgingUsers
from experiments.bootstrap import Estimate, mean_of
from experiments.page import Column, Table
from experiments.plots import FAINT, INK, WIDTH, style
from mechanisms.errors import BadInput
from mechanisms.pool import Bools, Floats, Ints, ReplyPool
from mechanisms.recording import Features, Request

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESAMPLES = 1000
BLUE = "#0072b2"
_KINDS = {"behavioural": "behavioural users", "user-llm": "the pool's User-LLM"}
"""Who may have judged a pool, by the `kind` that its manifest says."""
CAPTION = (
    "{second} against {first}, over {pairs} ads shown in replies to {requests} requests. Left: "
    "mean click probabilities in tenths of the pairs, in the order of {second}; bars: 95 % over "
    "requests; faint: the pairs. Right: rank correlation within each request, their mean and its "
    "95 % t-interval."
)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far two models of the user agree; see the head of this module.

    Attributes:
        names: of the two models.
        request: (k,) request of each pair (reply, ad shown).
        ctr: (2, k) click probabilities of the pairs, by model.
        spearman: over all pairs.
        within: mean of Spearman's correlation within requests (of those where both vary).
        by_request: (requests,) these; NaN where one does not vary.
        auc: of the second model's probabilities for the first one's clicks.
        auc_back: of the first model's for the second one's clicks.
        ceilings: what each model's probabilities reach for its own clicks.
        kappa: of the `top` share most likely clicked.
        top: see `kappa`.
    """

    names: tuple[str, str]
    request: Ints
    ctr: Floats
    spearman: Estimate
    within: Estimate
    by_request: Floats
    auc: Estimate
    auc_back: Estimate
    ceilings: tuple[float, float]
    kappa: Estimate
    top: float

    @property
    def requests(self) -> int:
        """How many requests show an ad."""
        return len(self.by_request)

    @property
    def table(self) -> pl.DataFrame:
        """A row per measure, with its interval and what it would be by chance and at best."""
        first, second = self.names
        rows = [
            ("rank correlation, all pairs", self.spearman, 0.0, 1.0),
            ("rank correlation, mean within requests", self.within, 0.0, 1.0),
            (f"AUC of {second} for clicks of {first}", self.auc, 0.5, self.ceilings[0]),
            (f"AUC of {first} for clicks of {second}", self.auc_back, 0.5, self.ceilings[1]),
            (f"{self.top:.0%} most likely clicked, kappa", self.kappa, 0.0, 1.0),
        ]
        return pl.DataFrame(
            [(name, *estimate, chance, best) for name, estimate, chance, best in rows],
            schema=["measure", "value", "value_low", "value_high", "chance", "best"],
            orient="row",
        )


class Section(NamedTuple):
    """What a page shows of an agreement: for `figures` and `shown` of `experiments.page`."""

    figure: Figure
    caption: str
    table: Table


def features_of(pool: ReplyPool) -> Features:
    """What was measured of a recording's replies, as a model of the user wants it.

    Raises:
        BadInput: no LLM wrote them.
    """
    if pool.replies is None or "nativeness" not in pool.replies.columns:
        raise BadInput("these replies were not recorded from an LLM; judge a recorded pool")
    B, M, n = pool.shape
    table = pool.replies
    per_reply = {
        name: table[name].to_numpy().reshape(B, M) for name in ("sentences", "fluency", "complete")
    }
    per_ad = {
        name: np.array(table[name].to_list()).reshape(B, M, n) for name in ("nativeness", "place")
    }
    return Features(
        text=table["text"].to_list(),
        exposure=pool.exposure,
        malformed=pool.malformed,
        **per_reply,
        **per_ad,
    )


def user_agreement(
    pool: ReplyPool,
    requests: Sequence[Request],
    judge: JudgingUsers,
    rng: np.random.Generator,
    *,
    count: int | None = None,
) -> Agreement:
    """The users who judged a pool against a User-LLM.

    Args:
        pool: recorded, with `ctr` by the users of its scenario.
        requests: of the pool (`market.environment.make_requests`).
        judge: the User-LLM.
        rng: draws the requests and the resamples.
        count: judge that many requests, drawn without replacement; None for all.

    Raises:
        BadInput: not a recording, other requests than the pool's, or users who do not click.
    """
    measured = features_of(pool)
    kind = pool.manifest.get("users", {}).get("kind", "behavioural")
    if kind not in _KINDS:
        raise BadInput(
            f"users {kind} judged this pool, and their ctr is not of clicks; give one judged by "
            f"{' or '.join(_KINDS)} users"
        )
    B, M, _ = pool.shape
    asked = [] if pool.requests is None else pool.requests["query_id"].to_list()
    if [request.query_id for request in requests] != asked:
        raise BadInput("the requests are not those of the pool; make them from its scenario")
    drawn = np.sort(rng.permutation(B)[:count])
    some = Features(
        text=[measured.text[b * M + j] for b in drawn for j in range(M)],
        **{
            name: getattr(measured, name)[drawn]
            for name in Features.__dataclass_fields__
            if name != "text"
        },
    )
    judged = judge.click_probabilities([requests[b] for b in drawn], some)
    names = _KINDS[kind], "User-LLM"
    return agreement(some.exposure, pool.ctr[drawn], judged, rng, names=names)


def agreement(
    exposure: Bools,
    first: Floats,
    second: Floats,
    rng: np.random.Generator,
    *,
    names: tuple[str, str] = ("behavioural users", "User-LLM"),
    top: float = 0.25,
) -> Agreement:
    """Compare the click probabilities of two models, (B, M, n) each, where `exposure` is True.

    Args:
        exposure: (B, M, n) ads shown.
        first: (B, M, n) of the first model.
        second: (B, M, n) of the second.
        rng: resamples requests.
        names: of the models.
        top: share of the pairs that count as clicked for Cohen's kappa.

    Raises:
        BadInput: no ads shown in two requests or more, or `top` not in (0, 1).
    """
    if not 0 < top < 1:
        raise BadInput(f"top is {top}; give a share in (0, 1)")
    b, _, _ = np.nonzero(exposure)
    shown, request = np.unique(b, return_inverse=True)
    if len(shown) < 2:
        raise BadInput(f"{len(shown)} requests show an ad; agreement needs two or more")
    ctr = np.stack([first[exposure], second[exposure]])
    groups = [np.flatnonzero(request == r) for r in range(len(shown))]
    by_request = np.array([spearman(*ctr[:, group]) for group in groups])
    told = by_request[np.isfinite(by_request)]
    measures = [
        spearman,
        expected_auc,
        lambda p, q: expected_auc(q, p),
        lambda p, q: kappa(p, q, top),
    ]
    found = _bootstrapped(measures, ctr, groups, rng)
    return Agreement(
        names=names,
        request=request,
        ctr=ctr,
        spearman=found[0],
        within=mean_of(told) if len(told) else Estimate(np.nan, np.nan, np.nan),
        by_request=by_request,
        auc=found[1],
        auc_back=found[2],
        ceilings=(expected_auc(ctr[0], ctr[0]), expected_auc(ctr[1], ctr[1])),
        kappa=found[3],
        top=top,
    )


def spearman(p: Floats, q: Floats) -> float:
    """Spearman's rank correlation; NaN where either does not vary."""
    x, y = rankdata(p) - (len(p) + 1) / 2, rankdata(q) - (len(q) + 1) / 2
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else np.nan


def expected_auc(p: Floats, q: Floats) -> float:
    """AUC of `q` (k,) for clicks of probability `p` (k,), see the head of this module."""
    _, tied, size = np.unique(q, return_inverse=True, return_counts=True)
    no = 1 - p
    of_tie = np.bincount(tied, no, minlength=len(size))
    below = (np.cumsum(of_tie) - of_tie)[tied]
    beaten = below + (of_tie[tied] - no) / 2
    pairs = p.sum() * no.sum() - p @ no
    return float(p @ beaten / pairs) if pairs > 0 else np.nan


def kappa(p: Floats, q: Floats, top: float) -> float:
    """Cohen's kappa of being above the 1 - top quantile; NaN where nothing or everything is."""
    x, y = (each > np.quantile(each, 1 - top) for each in (p, q))
    by_chance = x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
    return float(((x == y).mean() - by_chance) / (1 - by_chance)) if by_chance < 1 else np.nan


def _bootstrapped(
    measures: Sequence[Callable[[Floats, Floats], float]],
    ctr: Floats,
    groups: Sequence[Ints],
    rng: np.random.Generator,
) -> list[Estimate]:
    """Each measure of `ctr` (2, k) with a percentile interval; `groups` are resampled."""
    again = np.empty((RESAMPLES, len(measures)))
    for row in again:
        drawn = rng.integers(len(groups), size=len(groups))
        p, q = ctr[:, np.concatenate([groups[r] for r in drawn])]
        row[:] = [measure(p, q) for measure in measures]
    low, high = np.nanquantile(again, [0.025, 0.975], axis=0)
    return [
        Estimate(measure(*ctr), float(a), float(b))
        for measure, a, b in zip(measures, low, high, strict=True)
    ]


def section(found: Agreement) -> Section:
    """Figure, caption and table of an agreement, for a page."""
    first, second = found.names
    caption = CAPTION.format(
        first=first, second=second, pairs=found.ctr.shape[1], requests=found.requests
    )
    columns = [
        Column("measure", "measure"),
        Column("value", "value"),
        Column("chance", "by chance"),
        Column("best", "at best"),
    ]
    note = (
        f"Click probability of a shown ad, mean: {first} {found.ctr[0].mean():.3f}, {second} "
        f"{found.ctr[1].mean():.3f}."
    )
    title = f"Agreement of {first} and {second}"
    return Section(figure(found), caption, Table(title, found.table, columns, note))


def figure(found: Agreement) -> Figure:
    """Mean click probabilities in tenths of the pairs, and rank correlations by request."""
    from matplotlib.figure import Figure

    with style():
        drawn = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        left, right = drawn.subplots(1, 2, width_ratios=(1.7, 1))
        _tenths(left, found)
        _by_request(right, found)
    return drawn


def _tenths(ax: Axes, found: Agreement) -> None:
    p, q = found.ctr
    order = np.argsort(q, kind="stable")
    parts = np.array_split(order, min(10, len(order)))
    x, y = (
        np.array([q[part].mean() for part in parts]),
        np.array([p[part].mean() for part in parts]),
    )
    reach = np.array([_error(p[part], found.request[part]) for part in parts])
    ax.scatter(q, p, s=9, color=FAINT, alpha=0.35, linewidths=0)
    ax.errorbar(x, y, reach, fmt="o", color=BLUE, markersize=6, capsize=3, linewidth=1.4)
    ax.set_title(f"rank correlation {_said(found.spearman)}")
    ax.set_xlabel(f"click probability, {found.names[1]}")
    ax.set_ylabel(f"click probability, {found.names[0]}")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)


def _error(values: Floats, request: Ints) -> float:
    """Half the 95 % interval of a mean whose values come in clusters (linearised); NaN of one."""
    sums = np.bincount(request, values - values.mean())
    there = np.bincount(request) > 0
    clusters = int(there.sum())
    if clusters < 2:
        return np.nan
    spread = np.sqrt((sums[there] ** 2).sum() * clusters / (clusters - 1))
    return float(1.96 * spread / len(values))


def _by_request(ax: Axes, found: Agreement) -> None:
    told = np.sort(found.by_request[np.isfinite(found.by_request)])
    ax.scatter(told, np.arange(len(told)), s=22, color=BLUE)
    ax.axvline(0, color=INK, linewidth=1)
    ax.axvspan(found.within.low, found.within.high, color=BLUE, alpha=0.15, linewidth=0)
    ax.axvline(found.within.mean, color=BLUE, linewidth=1.6)
    ax.set_xlim(-1.05, 1.05)
    ax.set_yticks([])
    ax.set_title(f"within requests {_said(found.within)}")
    ax.set_xlabel("rank correlation")
    ax.set_ylabel("requests, sorted")


def _said(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"

"""`solve_bayesian`: the bid functions that learners settle on, values being redrawn each round.

Losses are measured in two games, which a report keeps apart. `dual-averaging` plays a game of its
own, on cells; its loss there is the measure of the literature (SODA). The continuous game allows
any bid of a fine grid at any value; there one bid function stands for what was learned, the same
way in every game (`functions`), with outcomes exact where the auction has a single slot
(`interim.SingleSlot`), otherwise from fresh samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.bayesian import dual_averaging, gradient
from experiments.bayesian.check import whole
from experiments.bayesian.dual_averaging import DualAveraging
from experiments.bayesian.functions import CELLS_A_PIECE, function_losses, purified, smoothed
from experiments.bayesian.game import BayesianGame
from experiments.bayesian.gradient import Gradient
from experiments.bayesian.interim import interim_of
from experiments.bayesian.prior import Uniform
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput, instead
from mechanisms.pool import Floats, ReplyPool

LEARNERS = {"dual-averaging": DualAveraging, "gradient": Gradient}
STILL = 0.01
"""Movement of bids, as a fraction of the highest considered, below which play is at rest."""
SMALL = 0.01
"""Relative utility loss up to which play at rest counts as an equilibrium."""
_EXACT_CELLS, _SAMPLED_CELLS = 1024, 128

Status = Literal["converged", "stalled", "cycling", "drifting"]


@dataclass(frozen=True, eq=False)
class BayesianReport:
    """What a learner found, and what it is worth.

    A relative utility loss is `(max(0, attainable − attained) + owed) / attainable`, `owed` being
    by how much a value maximizer misses its target. Nothing here has been scaled to meet one.

    Attributes:
        bids: (n, POINTS) bid functions at evenly spaced quantiles of the value. For strategies on
            cells, a fixed smoothing stands for them (`functions.smoothed`).
        priors: (n,) priors of the values.
        grid_loss: (n,) relative utility loss of the learner's own strategies in its own game, on
            bid and value cells, with nothing smoothed; None for `gradient`, which has no such game.
        continuous_loss: (n,) relative utility loss of `bids` in the continuous game.
        unsmoothed_loss: (n,) the same of the learner's bid distributions as they are on its cells
            (`functions.purified`); None for `gradient`, which learns functions.
        exploitability: sum over advertisers of what a best response to `bids` adds (value, for
            value maximizers) and of what they owe, in money per request (NashConv), in the
            continuous game.
        roi_violation: (n,) `max(0, roi E[p] − E[v x]) / E[v x]` of `bids`.
        target_factor: (n,) by which factor a value maximizer's `bids` would meet its target just
            so: below 1 where they miss it, above where they leave room; kept within 1/2 and 2, and
            to the bids considered. 1 for utility maximizers.
        at_cap: (n,) whether a value maximizer's bids reach the highest considered (`top`), so that
            what was found may hang on it.
        stretch: (n,) κ, for which value maximizers bid as utility maximizers of value `κ v / roi`.
        status: of play in its last quarter (`status_of`).
        path: (checks, n, K) mean bids as play went, at evenly spaced quantiles.
        seconds: by the clock, measurement included.
        processor_seconds: the same, of this process alone.
        produced_by: learner, its parameters, seed, how outcomes were computed, and what stands for
            a strategy in the continuous game.
    """

    bids: Floats
    priors: tuple[Uniform, ...]
    grid_loss: Floats | None
    continuous_loss: Floats
    unsmoothed_loss: Floats | None
    exploitability: float
    roi_violation: Floats
    target_factor: Floats
    at_cap: NDArray[np.bool_]
    stretch: Floats
    status: Status
    path: Floats
    seconds: float
    processor_seconds: float
    produced_by: Mapping[str, Any]

    def bid_function(self, values: ArrayLike) -> Floats:
        """(n,) bids at one value, or (n, m) at values (m,); constant beyond each prior's ends."""
        v = np.asarray(values, dtype=np.float64)
        u = np.linspace(0, 1, self.bids.shape[1])
        pairs = zip(self.priors, self.bids, strict=True)
        return np.stack([np.interp(v, prior.quantile(u), bids) for prior, bids in pairs])


def solve_bayesian(
    mechanism: Mechanism,
    pool: ReplyPool,
    prior: Uniform | Sequence[Uniform],
    learner: str = "dual-averaging",
    objective: str | Sequence[str] = "utility",
    roi: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    top: ArrayLike | None = None,
    samples: int = 512,
    check_samples: int = 8192,
    **parameters: Any,
) -> BayesianReport:
    """Learn a Bayesian equilibrium and measure it.

    Args:
        mechanism: any.
        pool: its requests are equally likely in every round; N advertisers.
        prior: one for all, or one per advertiser; draws are independent.
        learner: "dual-averaging" or "gradient".
        objective: "utility" or "value", one for all or one per advertiser.
        roi: ex ante target ROI of value maximizers, a number or one per advertiser; default 1.
        rng: for samples and first weights; default seed 0.
        top: highest bids considered (`BayesianGame.of`).
        samples: requests sampled in each of the learner's rounds, where outcomes are not exact.
        check_samples: requests sampled to measure what was found, likewise.
        parameters: of the learner (`DualAveraging`, `Gradient`).

    Raises:
        BadInput: an unknown learner, parameter or objective, or a value out of range.
    """
    began, worked = time.perf_counter(), time.process_time()
    rng = np.random.default_rng(0) if rng is None else rng
    par = _parameters(learner, parameters)
    whole("solve_bayesian", 1, samples=samples, check_samples=check_samples)
    game = BayesianGame.of(mechanism, pool, prior, objective, roi, top)
    play = interim_of(game, samples, rng)
    grid_loss = on_cells = None
    if isinstance(par, DualAveraging):
        found = dual_averaging.learn(game, play, par)
        bids = np.minimum(smoothed(found.mean_bids, par.bid_cells), game.top[:, None])
        on_cells = purified(found.distributions)
        stretch, path, grid_loss = found.stretch, found.path, found.losses.relative
        stands = f"cubic spline of mean bids, {CELLS_A_PIECE} bid cells a piece"
    else:
        bids, stretch, path = gradient.learn(game, play, par, rng)
        stands = "the network's bid function"
    exact = game.rates is not None
    cells = _EXACT_CELLS if exact else _SAMPLED_CELLS
    check = interim_of(game, check_samples, rng, fresh=False)
    measured, factor = function_losses(game, check, bids, cells)
    unsmoothed = None
    if on_cells is not None:
        unsmoothed = function_losses(game, check, on_cells, cells)[0].relative
    at_cap = game.value_maximizer & (bids[:, -1] >= (1 - 1 / par.bid_cells) * game.top)
    sampled = f"{samples} samples a round, {check_samples} to check"
    me = game.member
    return BayesianReport(
        bids=bids[me],
        priors=tuple(game.priors[c] for c in me),
        grid_loss=None if grid_loss is None else grid_loss[me],
        continuous_loss=measured.relative[me],
        unsmoothed_loss=None if unsmoothed is None else unsmoothed[me],
        exploitability=float(game.counts @ measured.gain),
        roi_violation=measured.violation[me],
        target_factor=factor[me],
        at_cap=at_cap[me],
        stretch=stretch[me],
        status=status_of(path, game.top, float(measured.relative.max())),
        path=path[:, me],
        seconds=time.perf_counter() - began,
        processor_seconds=time.process_time() - worked,
        produced_by={
            "learner": learner,
            **asdict(par),
            "seed": getattr(rng.bit_generator.seed_seq, "entropy", None),
            "outcomes": "exact" if exact else sampled,
            "bid function": stands,
        },
    )


def status_of(path: Floats, top: Floats, loss: float) -> Status:
    """Diagnosis of play from its last quarter, and from what the end of it loses.

    At rest, bids are within `STILL · top` of where they end (root mean square over values, for
    every class): then play has converged if nobody loses more than `SMALL`, and stalled otherwise.
    Cycling: not at rest, and play travelled at least three times as far as it got. Drifting: else.

    Args:
        path: (checks, C, K) bids as play went.
        top: (C,) highest bids considered.
        loss: greatest relative utility loss of what play came to.
    """
    late = path[-max(3, len(path) // 4) :] / top[:, None]
    if np.sqrt(((late - late[-1]) ** 2).mean(axis=2)).max() <= STILL:
        return "converged" if loss <= SMALL else "stalled"
    steps = np.sqrt((np.diff(late, axis=0) ** 2).mean(axis=(1, 2))).sum()
    net = np.sqrt(((late[-1] - late[0]) ** 2).mean())
    return "cycling" if steps >= 3 * net else "drifting"


def _parameters(learner: str, given: dict[str, Any]) -> DualAveraging | Gradient:
    if learner not in LEARNERS:
        mend = instead(learner, LEARNERS)
        raise BadInput(f"no learner {learner!r} for private values redrawn; {mend}")
    known = LEARNERS[learner].__dataclass_fields__
    for name in given:
        if name not in known:
            mend = instead(name, known, "it has")
            raise BadInput(f"{learner} has no parameter {name!r}; {mend}")
    return LEARNERS[learner](**given)

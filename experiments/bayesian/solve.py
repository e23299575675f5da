"""`solve_bayesian`: the bid functions that learners settle on, values being redrawn each round.

The learner plays its own discretised or parametrised game; what is reported is measured apart from
it, in the continuous game: the bid functions found, deviations to any bid of a fine grid at any
value, outcomes exact where the auction has a single slot (`interim.SingleSlot`), otherwise from
fresh samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from experiments.bayesian import dual_averaging, gradient
from experiments.bayesian.dual_averaging import DualAveraging
from experiments.bayesian.functions import candidates, function_losses
from experiments.bayesian.game import BayesianGame
from experiments.bayesian.gradient import Gradient
from experiments.bayesian.interim import Interim, interim_of
from experiments.bayesian.prior import Uniform
from experiments.bayesian.response import Losses
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool

LEARNERS = {"dual-averaging": DualAveraging, "gradient": Gradient}
STILL = 0.01
"""Movement of bids, as a fraction of the highest considered, below which play has converged."""
_EXACT_CELLS, _SAMPLED_CELLS = 1024, 128

Status = Literal["converged", "cycling", "drifting"]


@dataclass(frozen=True, eq=False)
class BayesianReport:
    """What a learner found, and what it is worth.

    Attributes:
        bids: (n, POINTS) bid functions at evenly spaced quantiles of the value.
        priors: (n,) priors of the values.
        exploitability: sum over advertisers of what a best response adds (value, for value
            maximizers), in money per request (NashConv), in the continuous game.
        relative_utility_loss: (n,) `1 − attained / attainable` in the continuous game.
        grid_loss: (n,) the same in the learner's own grid game; None if it has none.
        roi_violation: (n,) `max(0, roi E[p] − E[v x]) / E[v x]` of the bid functions.
        stretch: (n,) κ, for which value maximizers bid as utility maximizers of value `κ v / roi`.
        status: of the learner's play in its last quarter: converged (bids moved by less than
            `STILL`), cycling (they came back), or drifting. It says nothing about losses.
        path: (checks, n, K) mean bids as play went, at evenly spaced quantiles.
        seconds: everything, measurement included.
        produced_by: learner, its parameters, seed, and how outcomes were computed.
    """

    bids: Floats
    priors: tuple[Uniform, ...]
    exploitability: float
    relative_utility_loss: Floats
    grid_loss: Floats | None
    roi_violation: Floats
    stretch: Floats
    status: Status
    path: Floats
    seconds: float
    produced_by: Mapping[str, Any]

    @property
    def max_relative_utility_loss(self) -> float:
        """The largest relative utility loss of any advertiser."""
        return float(self.relative_utility_loss.max())

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
    began = time.perf_counter()
    rng = np.random.default_rng(0) if rng is None else rng
    par = _parameters(learner, parameters)
    if samples < 1 or check_samples < 1:
        raise BadInput("solve_bayesian: samples and check_samples must be at least 1")
    game = BayesianGame.of(mechanism, pool, prior, objective, roi, top)
    play = interim_of(game, samples, rng)
    if isinstance(par, DualAveraging):
        found = dual_averaging.learn(game, play, par)
        functions = candidates(found.distributions, found.mean_bids)
        stretch, path, grid_loss = found.stretch, found.path, found.losses.relative
    else:
        bids, stretch, path = gradient.learn(game, play, par, rng)
        functions, grid_loss = [bids], None
    bids, measured = _least_exploitable(
        game, functions, interim_of(game, check_samples, rng, fresh=False)
    )
    me = game.member
    exact = game.rates is not None
    return BayesianReport(
        bids=bids[me],
        priors=tuple(game.priors[c] for c in me),
        exploitability=float(game.counts @ measured.gain),
        relative_utility_loss=measured.relative[me],
        grid_loss=None if grid_loss is None else grid_loss[me],
        roi_violation=measured.violation[me],
        stretch=stretch[me],
        status=status_of(path, game.top),
        path=path[:, me],
        seconds=time.perf_counter() - began,
        produced_by={
            "learner": learner,
            **asdict(par),
            "seed": getattr(rng.bit_generator.seed_seq, "entropy", None),
            "outcomes": "exact"
            if exact
            else f"{samples} samples a round, {check_samples} to check",
        },
    )


def status_of(path: Floats, top: Floats) -> Status:
    """Diagnosis of play from its last quarter.

    Converged: bids are within `STILL · top` of where they end (root mean square over values, for
    every class). Cycling: it is, but play
    travelled at least three times as far as it got. Drifting: otherwise.

    Args:
        path: (checks, C, K) bids as play went.
        top: (C,) highest bids considered.
    """
    late = path[-max(3, len(path) // 4) :] / top[:, None]
    if np.sqrt(((late - late[-1]) ** 2).mean(axis=2)).max() <= STILL:
        return "converged"
    steps = np.sqrt((np.diff(late, axis=0) ** 2).mean(axis=(1, 2))).sum()
    net = np.sqrt(((late[-1] - late[0]) ** 2).mean())
    return "cycling" if steps >= 3 * net else "drifting"


def _parameters(learner: str, given: dict[str, Any]) -> DualAveraging | Gradient:
    if learner not in LEARNERS:
        known = ", ".join(LEARNERS)
        raise BadInput(f"no learner {learner!r} for private values redrawn; there are {known}")
    known = LEARNERS[learner].__dataclass_fields__
    for name in given:
        if name not in known:
            raise BadInput(f"{learner} has no parameter {name!r}; it has {', '.join(known)}")
    return LEARNERS[learner](**given)


def _least_exploitable(
    game: BayesianGame, functions: list[Floats], interim: Interim
) -> tuple[Floats, Losses]:
    """Of several bid functions that may stand for what was learned, those that lose least."""
    cells = _EXACT_CELLS if game.rates is not None else _SAMPLED_CELLS
    measured = [function_losses(game, interim, bids, cells) for bids in functions]
    return min(measured, key=lambda pair: float(pair[1].relative.max()))

"""Equilibria that learners come to, and how far from an exact one they are.

Learners play from several starting points (`play`). Where each play ends, three profiles are looked
at: the mean bids of the `last` strategies; the mean bids on `average` over the second half of the
rounds; and the `mixture`, the product of the advertisers' strategies averaged likewise. Their
exploitability (`experiments.game`, `mixtures`) is computed afresh, on finer bids than any learner
knows of: a certificate that holds however the profile was found. The profile reported is the one of
least exploitability; all others are listed beside it. Slot auctions often have no equilibrium in
fixed bids that learners could come to, and the mean of a good mixture may be a bad bid.

Exploitability is NashConv, the sum of what advertisers could gain and what value maximizers owe to
their targets, as a fraction of the value that all attain. Beside it, the same sum over the mean
value per click: smaller wherever a request brings less than a click, as it does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from agents.learners.base import Population
from agents.learners.registry import check_learner
from experiments.equilibrium.diagnosis import Diagnosis, Status, diagnose
from experiments.equilibrium.mixtures import MixedGains, mixed_gains, pure_gains
from experiments.equilibrium.play import Play, Style, play
from experiments.game import Game
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints, ReplyPool

STARTS = 8
ROUNDS = {"gradient": 1500, "best-response": 300, "fictitious-play": 1500, "pacing": 1500}
DEFAULT_ROUNDS = 6000  # of learners that keep mixtures: their averages need them
SNAPSHOTS = 16
PROFILES = ("last", "average", "mixture")
OBJECTIVES = ("utility", "value")


@dataclass(frozen=True, eq=False)
class EquilibriumReport:
    """What learners came to.

    Attributes:
        game: what was played.
        profile: which of `PROFILES` has the least exploitability, of all starts.
        start: which start it comes from.
        bids: (N,) its bids; the mean bids of a mixture.
        exploitability: of the profile, as a fraction of the value that all attain.
        per_click_value: its NashConv over the mean value per click.
        gain: (N,) what each could gain by another fixed bid, money per request.
        owed: (N,) what value maximizers owe to their target ROI, money per request.
        value: (N,) value attained per request.
        payment: (N,) paid per request.
        best: (N,) best replies.
        relative_utility_loss: (N,) what each could gain, as a fraction of what its best bid brings;
            where it owes, what it owes as a fraction of its value.
        cce_gap: (R,) of the whole plays, see `Play.cce_gap`.
        status: of the start reported, see `diagnosis`; `counts` has those of all.
        diagnoses: (R) of each start.
        ends: (3, R) exploitability of `PROFILES` by start.
        mixtures: (R) gains against the product of average mixtures, with intervals.
        snapshots: rounds (S,) at which exploitability was computed over time,
        trajectory: (S, 2, R) of the last strategies and of averages over the second half till then.
        play: bids round by round, average strategies, regret.
        seconds: that it took.
        produced_by: learner, parameters, rounds, starts and what else it takes to do it again.
    """

    game: Game
    profile: str
    start: int
    bids: Floats
    exploitability: float
    per_click_value: float
    gain: Floats
    owed: Floats
    value: Floats
    payment: Floats
    best: Floats
    relative_utility_loss: Floats
    cce_gap: Floats
    status: Status
    diagnoses: tuple[Diagnosis, ...]
    ends: Floats
    mixtures: tuple[MixedGains, ...]
    snapshots: Ints
    trajectory: Floats
    play: Play
    seconds: float
    produced_by: dict[str, Any]

    @property
    def last(self) -> Floats:
        """(R,) exploitability of the last strategies' mean bids."""
        return self.ends[0]

    @property
    def average(self) -> Floats:
        """(R,) exploitability of the bids averaged over the second half of the rounds."""
        return self.ends[1]

    @property
    def mixture(self) -> MixedGains:
        """Gains against the product of average mixtures, of the start reported."""
        return self.mixtures[self.start]

    @property
    def frame(self) -> pl.DataFrame:
        """A row per advertiser: bid, best reply, what it attains and could gain, per request."""
        people = self.game.people
        ends = self.play.average / people.truthful_bids
        return pl.DataFrame(
            {
                "advertiser": np.arange(len(self.bids)),
                "objective": np.where(people.value_maximizer, "value", "utility").tolist(),
                "value_per_click": people.values,
                "target_roi": people.target_roi,
                "bid": self.bids,
                "bid_over_truthful": self.bids / people.truthful_bids,
                "bid_over_truthful_low": ends.min(axis=0),
                "bid_over_truthful_high": ends.max(axis=0),
                "best_over_truthful": self.best / people.truthful_bids,
                "value": self.value,
                "payment": self.payment,
                "gain": self.gain,
                "owed": self.owed,
                "relative_utility_loss": self.relative_utility_loss,
            }
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many starts converged, cycled and drifted."""
        found = Counter(each.status for each in self.diagnoses)
        return {status: found[status] for status in ("converged", "cycling", "drifting")}


def solve(
    mechanism: Mechanism,
    pool: ReplyPool,
    values: ArrayLike,
    objective: str | Sequence[str] = "utility",
    roi: ArrayLike | None = None,
    learner: str = "hedge",
    rng: np.random.Generator | None = None,
    *,
    rounds: int | None = None,
    starts: int = STARTS,
    requests: int | None = None,
    **learner_parameters: Any,
) -> EquilibriumReport:
    """Let advertisers with given values learn against each other, and measure where they end.

    Args:
        mechanism: any.
        pool: candidate replies of N advertisers.
        values: (N,) value per click.
        objective: `utility` or `value`, for all or by advertiser.
        roi: target ROI of value maximizers, one or by advertiser; default 1.
        learner: a name of `agents.learners.LEARNERS`.
        rng: default seeded with 0.
        rounds: of play; default `ROUNDS`.
        starts: starting points, the first truthful.
        requests: requests a round, default the whole pool.
        learner_parameters: of the learner; grids have `play.GRID` bids by default.

    Raises:
        BadInput: anything out of range.
    """
    people = population_of(pool, values, objective, roi)
    check_learner(learner, learner_parameters)
    styles = [Style(learner, learner_parameters)] * len(people.values)
    return solve_game(
        Game(mechanism, pool, people), styles, rng, rounds=rounds, starts=starts, requests=requests
    )


def population_of(
    pool: ReplyPool, values: ArrayLike, objective: str | Sequence[str], roi: ArrayLike | None
) -> Population:
    """The population of `solve`'s arguments.

    Raises:
        BadInput: not one value, objective and target each, or an unknown objective.
    """
    N = pool.num_advertisers
    values = np.asarray(values, dtype=np.float64)
    objectives = [objective] * N if isinstance(objective, str) else list(objective)
    if values.shape != (N,) or len(objectives) != N:
        raise BadInput(f"the pool has {N} advertisers; give each a value and an objective")
    unknown = [each for each in objectives if each not in OBJECTIVES]
    if unknown:
        raise BadInput(f"objective {unknown[0]!r} is unknown; choose utility or value")
    vm = np.array([each == "value" for each in objectives])
    targets = np.asarray(1.0 if roi is None else roi, dtype=np.float64)
    if targets.shape not in ((), (N,)):
        raise BadInput(f"roi has shape {targets.shape}; give one number, or {N}")
    return Population(
        values=values,
        value_maximizer=vm,
        target_roi=np.where(vm, targets, 1.0),
        budget=np.full(N, np.inf),
    )


def solve_game(
    game: Game,
    styles: Sequence[Style],
    rng: np.random.Generator | None = None,
    *,
    rounds: int | None = None,
    starts: int = STARTS,
    requests: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> EquilibriumReport:
    """`solve` with a learner for each advertiser."""
    began = perf_counter()
    rng = np.random.default_rng(0) if rng is None else rng
    if rounds is None:
        rounds = max(ROUNDS.get(style.name, DEFAULT_ROUNDS) for style in styles)
    played = play(game, styles, rng, rounds=rounds, starts=starts, requests=requests, say=say)
    snapshots, trajectory = _over_time(game, played)
    mixtures = tuple(
        mixed_gains(game, played.support[r], played.weights[r], rng) for r in range(starts)
    )
    mixed = [each.exploitability.mean for each in mixtures]
    ends = np.concatenate([trajectory[-1], [mixed]])
    # of equally good ones the first: fixed bids rather than a mixture
    which, start = map(int, np.unravel_index(ends.argmin(), ends.shape))
    bids = (played.last if which == 0 else played.average)[start]
    found = mixtures[start] if which == 2 else pure_gains(game, bids)
    shares = played.own_value
    paths = played.bids / game.people.truthful_bids
    diagnoses = tuple(
        diagnose(paths[:, r], float(ends[:, r].min()), shares[r]) for r in range(starts)
    )
    return EquilibriumReport(
        game=game,
        profile=PROFILES[which],
        start=start,
        bids=bids,
        exploitability=found.exploitability.mean,
        per_click_value=float((found.gain + found.owed).sum() / game.people.values.mean()),
        gain=found.gain,
        owed=found.owed,
        value=found.value,
        payment=found.payment,
        best=found.best,
        relative_utility_loss=found.relative_loss,
        cce_gap=played.cce_gap(game.people),
        status=diagnoses[start].status,
        diagnoses=diagnoses,
        ends=ends,
        mixtures=mixtures,
        snapshots=snapshots,
        trajectory=trajectory,
        play=played,
        seconds=perf_counter() - began,
        produced_by={
            "mechanism": repr(game.mechanism),
            "learners": sorted({f"{each.name} {each.parameters or ''}".strip() for each in styles}),
            "rounds": rounds,
            "starts": starts,
            "requests_per_round": requests or game.pool.shape[0],
            "pool_hash": game.pool.content_hash,
        },
    )


def _over_time(game: Game, played: Play) -> tuple[Ints, Floats]:
    """Snapshots (S,), and exploitability (S, 2, R) at them."""
    T = len(played.bids)
    rounds = np.unique(np.geomspace(1, T, SNAPSHOTS).round().astype(int))
    found = np.empty((len(rounds), 2, played.bids.shape[1]))
    for s, t in enumerate(rounds):
        looked_at = (played.bids[t - 1], played.bids[t // 2 : t].mean(axis=0))
        found[s] = [game.gains(bids).exploitability for bids in looked_at]
    return rounds, found

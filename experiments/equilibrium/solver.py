"""Equilibria that learners come to, and how far from an exact one they are.

Learners play from several starting points (`play`). Where each play ends, three profiles are looked
at: the mean bids of the `last` strategies; the mean bids on `average` over the second half of the
rounds; and the `mixture`, the product of the advertisers' strategies averaged likewise. Their
exploitability (`experiments.game`, `mixtures`) is computed afresh, apart from the learners: a lower
bound, by a search finer than their grids.

Which of the three learners are judged by depends on what they are, not on how they fare: the
`mixture` if any of them keeps mixtures, else the `last` bids. What is reported is the *median* over
starts, with the details of the start in the middle (of two, the better); its status is that of most
starts, on equal counts the less settled one. The best and the worst start, and the other profiles,
are listed beside it. Slot auctions often have no equilibrium in fixed bids that learners could come
to, and the mean of a good mixture may be a bad bid.

Exploitability is NashConv, the sum of what advertisers could gain and what value maximizers owe to
their targets, as a fraction of the value that all attain together; small advertisers may lose much
of little (`relative_utility_loss`). Beside it, the same sum over the mean value per click: smaller
wherever a request brings less than a click, as it does.
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

from agents.learners.registry import check_learner
from experiments.equilibrium.diagnosis import Diagnosis, Status, diagnose
from experiments.equilibrium.mixtures import MixedGains, mixed_gains, pure_gains
from experiments.equilibrium.play import Play, play
from experiments.equilibrium.seats import Style
from experiments.game import Game, population_of
from mechanisms.base import Mechanism
from mechanisms.pool import Floats, Ints, ReplyPool

STARTS = 8
ROUNDS = {"gradient": 1500, "best-response": 300, "fictitious-play": 1500, "pacing": 1500}
DEFAULT_ROUNDS = 12_000  # of learners that keep mixtures: their averages need them
SNAPSHOTS = 16
PROFILES = ("last", "average", "mixture")


@dataclass(frozen=True, eq=False)
class EquilibriumReport:
    """What learners came to.

    Attributes:
        game: what was played.
        profile: which of `PROFILES` is judged, by the kind of learner.
        start: the one shown, in the middle by exploitability; the next five lines are of its
            profile.
        bids: (N,) its bids; the mean bids of a mixture.
        exploitability: of the profile, median over starts, as a fraction of the value that all
            attain.
        per_click_value: likewise, NashConv over the mean value per click.
        gain: (N,) what each could gain by another fixed bid, money per request.
        owed: (N,) what value maximizers owe to their target ROI, money per request.
        value: (N,) value attained per request.
        payment: (N,) paid per request.
        best: (N,) best replies.
        relative_utility_loss: (N,) what each could gain, as a fraction of what its best bid brings;
            where it owes, what it owes as a fraction of its value.
        cce_gap: (R,) of the whole plays, see `Play.cce_gap`.
        status: of most starts, see `diagnosis`; `counts` has those of all.
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
        """Gains against the product of average mixtures, of the start shown."""
        return self.mixtures[self.start]

    @property
    def judged(self) -> Floats:
        """(R,) exploitability of the profile judged."""
        return self.ends[PROFILES.index(self.profile)]

    @property
    def fixed_profile(self) -> tuple[str, int]:
        """Fixed bids for what can be asked of them alone, as profile and start.

        Those shown, or where these are a mixture the least exploitable ones of any start.
        """
        if self.profile != "mixture":
            return self.profile, self.start
        which, start = np.unravel_index(self.ends[:2].argmin(), self.ends[:2].shape)
        return PROFILES[which], int(start)

    @property
    def fixed_bids(self) -> Floats:
        """(N,) the bids of `fixed_profile`."""
        profile, start = self.fixed_profile
        return (self.play.last if profile == "last" else self.play.average)[start]

    @property
    def fixed_exploitability(self) -> float:
        """Exploitability of `fixed_bids`."""
        profile, start = self.fixed_profile
        return float(self.ends[PROFILES.index(profile), start])

    @property
    def frame(self) -> pl.DataFrame:
        """A row per advertiser: bid, best reply, what it attains and could gain, per request.

        `lowest_` and `highest_over_truthful` are of the bids of all starts.
        """
        people = self.game.people
        ends = self.play.average if self.profile == "mixture" else self.play.last
        ends = ends / people.truthful_bids
        return pl.DataFrame(
            {
                "advertiser": np.arange(len(self.bids)),
                "objective": np.where(people.value_maximizer, "value", "utility").tolist(),
                "value_per_click": people.values,
                "target_roi": people.target_roi,
                "bid": self.bids,
                "bid_over_truthful": self.bids / people.truthful_bids,
                "lowest_over_truthful": ends.min(axis=0),
                "highest_over_truthful": ends.max(axis=0),
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
        learner_parameters: of the learner; grids have `seats.GRID` bids by default.

    Raises:
        BadInput: anything out of range.
    """
    people = population_of(pool, values, objective, roi)
    check_learner(learner, learner_parameters)
    styles = [Style(learner, learner_parameters)] * len(people.values)
    return solve_game(
        Game(mechanism, pool, people), styles, rng, rounds=rounds, starts=starts, requests=requests
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
        mixed_gains(game, *mixture, rng)
        for mixture in zip(played.support, played.weights, strict=True)
    )
    mixed = [each.exploitability.mean for each in mixtures]
    ends = np.concatenate([trajectory[-1], [mixed]])
    profile = "mixture" if played.mixes.any() else "last"
    judged = ends[PROFILES.index(profile)]
    start = int(np.argsort(judged, kind="stable")[(len(judged) - 1) // 2])
    found = mixtures if profile == "mixture" else [pure_gains(game, b) for b in played.last]
    each_click = [(each.gain + each.owed).sum() / game.people.values.mean() for each in found]
    found = found[start]
    path = played.path(game.people)
    diagnoses = tuple(
        diagnose(path[:, r], float(judged[r]), played.own_value[r]) for r in range(len(judged))
    )
    return EquilibriumReport(
        game=game,
        profile=profile,
        start=start,
        bids=(played.average if profile == "mixture" else played.last)[start],
        exploitability=float(np.median(judged)),
        per_click_value=float(np.median(each_click)),
        gain=found.gain,
        owed=found.owed,
        value=found.value,
        payment=found.payment,
        best=found.best,
        relative_utility_loss=found.relative_loss,
        cce_gap=played.cce_gap(game.people),
        status=_of_most(diagnoses),
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
            "starts": len(judged),
            "requests_per_round": requests or game.pool.shape[0],
            "pool_hash": game.pool.content_hash,
        },
    )


def _of_most(diagnoses: Sequence[Diagnosis]) -> Status:
    """The status of most starts, of equally many the less settled one."""
    found = [each.status for each in diagnoses]
    return max(("drifting", "cycling", "converged"), key=found.count)


def _over_time(game: Game, played: Play) -> tuple[Ints, Floats]:
    """Snapshots (S,), and exploitability (S, 2, R) at them."""
    T = len(played.bids)
    rounds = np.unique(np.geomspace(1, T, SNAPSHOTS).round().astype(int))
    found = np.empty((len(rounds), 2, played.bids.shape[1]))
    for s, t in enumerate(rounds):
        looked_at = (played.bids[t - 1], played.bids[t // 2 : t].mean(axis=0))
        found[s] = [game.gains(bids).exploitability for bids in looked_at]
    return rounds, found

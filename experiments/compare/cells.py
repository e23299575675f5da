"""One cell of the map: what a mechanism comes to with one population of one kind of learners.

Learners play from R starting points (`experiments.equilibrium.play`), and each start comes to one
profile, of which everything is measured: the product of the advertisers' strategies, averaged over
the second half of the rounds, where learners keep mixtures; the last bids where they do not. Rows
are means over the starts: where there are several equilibria, or none, no single profile would
stand for the cell. Expected clicks x_i and payments p_i are exact over all requests of the pool;
over mixtures they are means of `PROFILES` draws. With values v_i, target ROIs τ_i and user
satisfaction q(y), per request,

    advertisers' value   Σ_i v_i x_i                     revenue  Σ_i p_i
    welfare              Σ_i v_i x_i + E q(y)
    liquid welfare       Σ_i v_i x_i / τ_i, τ_i = 1 for utility maximizers: what they would pay
    first best           max over candidate replies y of  Σ_i v_i ctr_i(y) + q(y),  by request
    price of anarchy     first best / welfare; infinite where there is none of the latter

The first best knows of no mechanism, temperature or incentive: tau is a mechanism's parameter, and
no part of welfare. As that compares a mechanism that has to stay near the reference LLM with one
that need not, welfare is also divided by the welfare of the same mechanism under truthful bids
(v, and v/τ of value maximizers): what strategic behaviour alone costs, or brings. The literature's
price of anarchy is of the worst equilibrium, or of the worst no-regret play (Blum et al. 2008);
this one is of the play that was learned.

Exploitability (`experiments.game`, `experiments.equilibrium.mixtures`) is of these same profiles. A
start has converged if its strategies are at rest and that is small
(`experiments.equilibrium.diagnosis`), and a cell if most of its starts have. Learners that go round
in cycles may have average mixtures that are hard to exploit: such a cell is cycling all the same.
An average of the play is not the play: in the product of averages advertisers bid independently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.compare.populations import Populations
from experiments.equilibrium.diagnosis import diagnose
from experiments.equilibrium.mixtures import draw_profiles, mixed_gains
from experiments.equilibrium.play import Play, Style, play
from experiments.game import Game
from experiments.parallel import Job, stream
from mechanisms.base import Mechanism
from mechanisms.pool import Floats, ReplyPool

PROFILES = 64
"""Profiles drawn from the mixtures of a starting point; stratified, so that few do for much."""

MIXTURE, LAST = "mixture", "last bids"
"""What a start comes to: the product of average strategies, or the last bids."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What all cells share.

    Attributes:
        mechanisms: by name.
        pools: what each trades on, by its name.
        populations: the replicate populations.
        rounds: of learning.
        starts: R, starting points of each draw, the first at the truthful bids.
        seed: of starting points and the learners' dice.
    """

    mechanisms: Mapping[str, Mechanism]
    pools: Mapping[str, ReplyPool]
    populations: Populations
    rounds: int
    starts: int
    seed: int


def cell(job: Job, setting: Setting) -> dict[str, Any]:
    """Learn and measure: the row of `job`, (mechanism, learner, share, draw)."""
    name, learner, share, draw = job
    mechanism, pool = setting.mechanisms[name], setting.pools[name]
    people = setting.populations.population(draw, share)
    # Common random numbers: for all mechanisms, and at the same quantiles for all shares. Learners'
    # own dice are not: they go by who shares a learner object, which shares and grids decide.
    rng = stream(setting.seed, "learning", learner, draw)
    game, styles = Game(mechanism, pool, people), [Style(learner)] * len(people.values)
    played = play(game, styles, rng, rounds=setting.rounds, starts=setting.starts)
    end = ending(game, played, rng)
    measured = outcome(game, end.profiles)
    truthful = outcome(game, people.truthful_bids[None])
    best = first_best(pool, people.values)
    return {
        "mechanism": name,
        "learner": learner,
        "share": share,
        "draw": draw,
        "value_maximizers": int(people.value_maximizer.sum()),
        **measured,
        "first_best": best,
        "truthful_revenue": truthful["revenue"],
        "truthful_welfare": truthful["welfare"],
        "price_of_anarchy": ratio(best, measured["welfare"]),
        "welfare_over_truthful": ratio(measured["welfare"], truthful["welfare"]),
        "exploitability": float(end.exploitability.mean()),
        "profile": MIXTURE if played.mixes.any() else LAST,
        "status": status(game, played, end),
    }


@dataclass(frozen=True, eq=False)
class Ending:
    """The profiles that R starts came to.

    Attributes:
        profiles: (K, N) bids; of equal weight, equally many from each start.
        exploitability: (R,) of each start's profile, which may be mixed.
        value: (R, N) value that each advertiser attains in it, per request.
    """

    profiles: Floats
    exploitability: Floats
    value: Floats


def ending(game: Game, played: Play, rng: np.random.Generator) -> Ending:
    """The product of each start's average mixtures, or its last bids; and how exploitable it is."""
    if not played.mixes.any():
        gains = game.gains(played.last)
        return Ending(played.last, gains.exploitability, gains.value)
    strategies = list(zip(played.support, played.weights, strict=True))
    found = [mixed_gains(game, *each, rng, PROFILES) for each in strategies]
    return Ending(
        profiles=np.concatenate([draw_profiles(*each, rng, PROFILES) for each in strategies]),
        exploitability=np.array([each.exploitability.mean for each in found]),
        value=np.array([each.value for each in found]),
    )


def status(game: Game, played: Play, end: Ending) -> str:
    """The status of most starts; of equally many, the less settled one."""
    paths = np.moveaxis(played.path(game.people), 1, 0)
    found = [
        diagnose(path, float(left), value).status
        for path, left, value in zip(paths, end.exploitability, end.value, strict=True)
    ]
    return max(("drifting", "cycling", "converged"), key=found.count)


def outcome(game: Game, profiles: Floats) -> dict[str, float]:
    """Expected amounts per request, averaged over `profiles` (K, N) with equal weight."""
    pool, people = game.pool, game.people
    B, K = len(pool.ads), len(profiles)
    copies = pool.take(np.tile(np.arange(B), K))
    bids = np.take_along_axis(np.repeat(profiles, B, axis=0), copies.ads, axis=1)
    found = game.mechanism.allocate(copies, bids)
    value = people.values[copies.ads] * found.itctr
    pays = np.where(people.value_maximizer, 1 / people.target_roi, 1.0)[copies.ads]
    satisfaction = (found.probabilities * copies.quality).sum(axis=1)
    amounts = {
        "revenue": found.payments.sum(axis=1),
        "advertisers_value": value.sum(axis=1),
        "user_satisfaction": satisfaction,
        "welfare": value.sum(axis=1) + satisfaction,
        "liquid_welfare": (value * pays).sum(axis=1),
    }
    return {name: float(amount.mean()) for name, amount in amounts.items()}


def first_best(pool: ReplyPool, values: Floats) -> float:
    """Greatest welfare per request that any choice among the candidate replies brings."""
    worth = (values[pool.ads][:, None, :] * pool.ctr).sum(axis=2) + pool.quality
    return float(worth.max(axis=1).mean())


def ratio(part: float, whole: float) -> float:
    """`part / whole`, both >= 0: 1 where both are 0, infinite where only the whole is."""
    if whole > 0:
        return part / whole
    return np.inf if part > 0 else 1.0

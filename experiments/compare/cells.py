"""One cell of the map: what a mechanism comes to with one population of one kind of learners.

Learners play from R starting points (`experiments.equilibrium.play`). What is measured are their
strategies averaged over the second half of the rounds, and amounts are means over the starts: where
there are several equilibria, or none, no single profile would stand for the cell. Expected clicks
x_i and payments p_i are of profiles drawn from these strategies, each exactly over all requests of
the pool; with values v_i, target ROIs τ_i and user satisfaction q(y), per request,

    advertisers' value   Σ_i v_i x_i                     revenue  Σ_i p_i
    welfare              Σ_i v_i x_i + E q(y)
    liquid welfare       Σ_i v_i x_i / τ_i, τ_i = 1 for utility maximizers: what they would pay
    first best           max over candidate replies y of  Σ_i v_i ctr_i(y) + q(y),  by request
    price of anarchy     first best / welfare

The first best knows of no mechanism, temperature or incentive: tau is a mechanism's parameter, and
no part of welfare. As that compares a mechanism that has to stay near the reference LLM with one
that need not, welfare is also divided by the welfare of the same mechanism under truthful bids
(v, and v/τ of value maximizers): what strategic behaviour alone costs, or brings. The literature's
price of anarchy is of the worst equilibrium, or of the worst no-regret play (Blum et al. 2008);
this one is of the play that was learned.

Exploitability is of mean bids (`experiments.game`): by start that of the last strategies or of the
averages, whichever is less, and its mean over the starts. A cell has converged if most of its
starts have (`experiments.equilibrium.diagnosis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.compare.populations import Populations
from experiments.equilibrium.diagnosis import diagnose
from experiments.equilibrium.mixtures import draw_profiles
from experiments.equilibrium.play import Play, Style, play
from experiments.game import Game
from experiments.parallel import Job, stream
from mechanisms.base import Mechanism
from mechanisms.pool import Floats, ReplyPool

PROFILES = 64
"""Profiles drawn from the strategies of a starting point."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What all cells share.

    Attributes:
        mechanisms: by name.
        pools: what each trades on, by its name.
        populations: the replicate populations.
        rounds: of learning.
        starts: R, starting points of each draw, the first truthful.
        seed: of the learners' dice.
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
    # The same dice for all mechanisms and shares, so that they differ by themselves alone.
    rng = stream(setting.seed, "learning", learner, draw)
    game, styles = Game(mechanism, pool, people), [Style(learner)] * len(people.values)
    played = play(game, styles, rng, rounds=setting.rounds, starts=setting.starts)
    mixtures = zip(played.support, played.weights, strict=True)
    profiles = [draw_profiles(*mixture, rng, PROFILES) for mixture in mixtures]
    measured = outcome(game, np.concatenate(profiles))
    truthful = outcome(game, people.truthful_bids[None])
    best = first_best(pool, people.values)
    exploitability, status = convergence(game, played)
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
        "price_of_anarchy": best / measured["welfare"],
        "welfare_over_truthful": measured["welfare"] / truthful["welfare"],
        "exploitability": exploitability,
        "status": status,
    }


def convergence(game: Game, played: Play) -> tuple[float, str]:
    """Exploitability, mean over starts, and the status of most starts (the less settled one)."""
    ends = game.gains(played.last), game.gains(played.average)
    reached = np.minimum(*(each.exploitability for each in ends))
    bids = played.bids / game.people.truthful_bids
    shares = ends[1].value
    found = [diagnose(bids[:, r], float(reached[r]), shares[r]).status for r in range(len(reached))]
    return float(reached.mean()), max(("drifting", "cycling", "converged"), key=found.count)


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

"""Exploitability of mixed profiles: every advertiser draws its bid from a mixture of its own.

With σ the product of the mixtures, advertiser i could gain `max_g u_i(g, σ_−i) − u_i(σ)` over fixed
bids g; value maximizers must meet their target on average over σ, and what they owe counts beside,
as in `experiments.game`. The rivals' draws are sampled, the same ones for every bid of everybody
(common random numbers), while an advertiser's own mixture is summed exactly. Best replies are
chosen on one sample and measured on another, so that the estimate is one of what they attain,
without the optimism of a maximum over its own sample. A value maximizer's reply that just met its
target on the first may miss it on the second by chance: what it then owes is taken off its gain.

Samples are stratified, and their draws therefore not independent of each other. The sample that
measures is made of `REPLICATES` independent ones; the interval is a t-interval over their means,
with replies, and who gains and owes, held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.learners.base import meets
from experiments.bootstrap import Estimate, mean_of
from experiments.game import BestReplies, Game, fraction
from mechanisms.pool import Floats

PROFILES = 256  # of the sample that replies are chosen on, and of all that measure them together
REPLICATES = 8


@dataclass(frozen=True, eq=False)
class MixedGains:
    """What advertisers could gain against a profile, mixed or pure; money per request.

    Attributes:
        gain: (N,) best fixed bid's objective less the present one's, >= 0.
        owed: (N,) what value maximizers owe to their targets.
        value: (N,) value attained.
        payment: (N,) paid.
        best: (N,) the best fixed bids.
        best_objective: (N,) what they attain.
        exploitability: sum of gains and dues over the value that all attain, with its interval.
    """

    gain: Floats
    owed: Floats
    value: Floats
    payment: Floats
    best: Floats
    best_objective: Floats
    exploitability: Estimate

    @property
    def relative_loss(self) -> Floats:
        """(N,) gains as fractions of the best, or dues of the value where something is owed.

        Infinite where something is lost and there is nothing to compare it with.
        """
        lost = np.where(self.owed > 0, self.owed, self.gain)
        scale = np.where(self.owed > 0, self.value, self.best_objective)
        return fraction(lost, np.maximum(scale, 0.0))


def mixed_gains(
    game: Game, support: Floats, weights: Floats, rng: np.random.Generator, profiles: int = PROFILES
) -> MixedGains:
    """Gains against the product of mixtures with `support` (N, K) and `weights` (N, K).

    `profiles` are drawn to choose best replies, and about as many to measure them.
    """
    people = game.people
    vm, roi = people.value_maximizer, people.target_roi
    chosen_on = draw_profiles(support, weights, rng, profiles)
    best = game.best_replies(chosen_on, also=support, pooled=True).bids
    each = max(1, profiles // REPLICATES)
    draws = np.concatenate([draw_profiles(support, weights, rng, each) for _ in range(REPLICATES)])
    value, payment = (
        x.reshape(REPLICATES, each, *x.shape[1:]).mean(axis=1)
        for x in game.curves(draws, np.concatenate([support, best.T], axis=1))
    )
    own = tuple((x[:, :, :-1] * weights).sum(axis=2) for x in (value, payment))
    # (replicates, N) samples; which gains and dues count, the means over all decide
    replies = (value[:, :, -1], payment[:, :, -1])
    short = ~meets(*(x.mean(axis=0) for x in replies), roi)
    due = np.where(short, roi * replies[1] - replies[0], 0.0)
    now = np.where(vm, own[0], own[0] - own[1])
    gain = replies[0] - np.where(vm, due, replies[1]) - now
    owed = np.where(vm, roi * own[1] - own[0], 0.0)
    attained, paid = (x.mean(axis=0) for x in own)
    gains = gain.mean(axis=0) > 0
    owes = vm & ~meets(attained, paid, roi)
    found = mean_of(fraction((gain * gains + owed * owes).sum(axis=1), attained.sum()))
    return MixedGains(
        gain=np.where(gains, gain.mean(axis=0), 0.0),
        owed=np.where(owes, owed.mean(axis=0), 0.0),
        value=attained,
        payment=paid,
        best=best[0],
        best_objective=(now + gain * gains).mean(axis=0),
        exploitability=Estimate(found.mean, max(found.low, 0.0), found.high),
    )


def pure_gains(game: Game, bids: Floats) -> MixedGains:
    """Gains against fixed bids (N,): exact, so that the interval is a point."""
    gains = game.gains(bids[None])
    found = float(gains.exploitability[0])
    return MixedGains(
        gain=gains.gain[0],
        owed=gains.owed[0],
        value=gains.value[0],
        payment=game.outcome(bids[None])[1][0],
        best=gains.best.bids[0],
        best_objective=_objective(game, gains.best),
        exploitability=Estimate(found, found, found),
    )


def _objective(game: Game, best: BestReplies) -> Floats:
    """(N,) what best replies to one profile attain."""
    vm = game.people.value_maximizer
    return np.where(vm, best.value, best.value - best.payment)[0]


def draw_profiles(
    support: Floats, weights: Floats, rng: np.random.Generator, profiles: int
) -> Floats:
    """(profiles, N) bids drawn independently from each advertiser's mixture.

    Stratified: an advertiser's draws take the quantiles of its mixture in random order, one from
    each of `profiles` equal parts, so that few profiles do for much.
    """
    N, K = weights.shape
    cumulative = np.cumsum(weights, axis=1)
    strata = rng.permuted(np.tile(np.arange(profiles), (N, 1)), axis=1)
    u = (strata + rng.random((N, profiles))) / profiles * cumulative[:, -1:]
    drawn = np.stack([np.searchsorted(cumulative[i], u[i], side="right") for i in range(N)])
    return np.take_along_axis(support, np.minimum(drawn, K - 1), axis=1).T

"""Exploitability of mixed profiles: every advertiser draws its bid from a mixture of its own.

With σ the product of the mixtures, advertiser i could gain `max_g u_i(g, σ_−i) − u_i(σ)` over fixed
bids g; value maximizers must meet their target on average over σ, and what they owe counts beside,
as in `experiments.game`. The rivals' draws are sampled: K profiles, the same ones for every bid of
everybody (common random numbers), while an advertiser's own mixture is summed exactly. Best replies
are chosen on the sample that measures them, so that the estimate errs upwards, if at all. The
interval is a t-interval over the K profiles, with replies and dues held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.bootstrap import Estimate, mean_of
from experiments.game import ROUNDING, BestReplies, Game, fraction
from mechanisms.pool import Floats

PROFILES = 256


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
        """(N,) gains as fractions of the best, or dues of the value where something is owed."""
        lost = np.where(self.owed > 0, self.owed, self.gain)
        scale = np.where(self.owed > 0, self.value, self.best_objective)
        return np.divide(lost, scale, out=np.zeros(len(lost)), where=(lost > 0) & (scale > 0))


def mixed_gains(
    game: Game, support: Floats, weights: Floats, rng: np.random.Generator, profiles: int = PROFILES
) -> MixedGains:
    """Gains against the product of mixtures with `support` (N, K) and `weights` (N, K)."""
    people = game.people
    vm, roi = people.value_maximizer, people.target_roi
    draws = draw_profiles(support, weights, rng, profiles)
    best = game.best_replies(draws, pooled=True)
    value, payment = game.curves(draws, np.concatenate([support, best.bids.T], axis=1))
    own = tuple((x[:, :, :-1] * weights).sum(axis=2) for x in (value, payment))
    replies = (value[:, :, -1], payment[:, :, -1])
    # (profiles, N) samples of what is gained and owed; which of them count, the means decide
    gain = np.where(vm, replies[0] - own[0], replies[0] - replies[1] - own[0] + own[1])
    owed = np.where(vm, roi * own[1] - own[0], 0.0)
    gains = gain.mean(axis=0) > 0
    owes = owed.mean(axis=0) > ROUNDING * roi * own[1].mean(axis=0)
    attained = own[0].mean(axis=0)
    found = mean_of(fraction((gain * gains + owed * owes).sum(axis=1), attained.sum()))
    return MixedGains(
        gain=np.where(gains, gain.mean(axis=0), 0.0),
        owed=np.where(owes, owed.mean(axis=0), 0.0),
        value=attained,
        payment=own[1].mean(axis=0),
        best=best.bids[0],
        best_objective=_objective(game, best),
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

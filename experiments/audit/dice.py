"""The same deviations with the dice thrown: `Mechanism.run` with one generator for all of them.

Each of an advertiser's requests is served many times, truthfully and with the deviation, with the
same uniform numbers for replies and clicks. The mean difference over dice is an estimate of the
exact gain, which it should agree with wherever charges have the payments for a mean; it knows
nothing of `allocate` or of stated payments, and goes through everything that a market goes through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.learners.base import Population
from experiments.audit.deviations import Deviations, truthful_profile, worth
from experiments.bootstrap import Estimate, mean_of
from mechanisms.base import Mechanism
from mechanisms.pool import Floats, ReplyPool


@dataclass(frozen=True)
class Dice:
    """What one advertiser met, realised; money as a fraction of its value per click.

    Attributes:
        gain: of the deviation over truth, per request it competes in, 95 % t-interval over
            requests: utility, or value for a value maximizer.
        lost: share of the times it was served truthfully that value less charge was below 0.
    """

    gain: Estimate
    lost: float


def throw(
    mechanism: Mechanism,
    pool: ReplyPool,
    people: Population,
    bids: Floats,
    found: Deviations,
    multiple: float,
    times: int,
    seed: np.random.SeedSequence,
) -> Dice:
    """Serve each request of `found` so many `times`, truthfully and at `multiple` of truth."""
    k = len(found.requests)
    if not k:
        return Dice(Estimate(0.0, 0.0, 0.0), 0.0)
    copies = pool.take(np.tile(found.requests, times))
    own = (pool.ads[found.requests] == found.index).argmax(axis=1)
    rows, column = np.arange(k * times), np.tile(own, times)
    profile = truthful_profile(people, bids, found.index)

    units = worth(mechanism, copies)

    def served(bid: float) -> tuple[Floats, Floats]:
        """(k·times,) clicks (or what a bid is on), and charges, of the value per click."""
        profile[found.index] = bid
        outcome = mechanism.run(copies, profile, np.random.default_rng(seed))
        attained = outcome.clicks if units is copies.ctr else units[rows, outcome.chosen]
        charges = outcome.charges[rows, column] / found.value_per_click
        return attained[rows, column].astype(np.float64), charges

    clicks, charges = served(float(people.truthful_bids[found.index]))
    other_clicks, other_charges = served(multiple * float(people.truthful_bids[found.index]))
    gain = other_clicks - clicks
    if found.target_roi is None:
        gain = gain - (other_charges - charges)
    return Dice(
        gain=mean_of(gain.reshape(times, k).mean(axis=0)),
        lost=float((clicks - charges < -1e-9).mean()),
    )

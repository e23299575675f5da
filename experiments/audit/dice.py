"""The same deviations with the dice thrown: `Mechanism.run` with one generator for all of them.

Each of an advertiser's requests is served many times, truthfully and with the deviation, with the
same uniform numbers for replies and clicks. The mean difference over dice is an estimate of the
exact gain on the same requests, with an interval over the times they are served, which the exact
one is in wherever charges have the payments for a mean. Dice are thrown in `Mechanism.run`, as in a
market: nothing here knows of `allocate` or of stated payments.

Where a deviation hardly ever changes the reply, its few large effects may not have been seen at
all. So intervals are made as if a click more and a click less had been seen, once each (as Agresti
& Coull 1998 do for proportions).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from agents.learners.base import Population
from experiments.audit.deviations import Deviations, truthful_profile, worth
from experiments.audit.properties import THRESHOLD
from experiments.bootstrap import Estimate
from mechanisms.base import Mechanism
from mechanisms.pool import Floats, ReplyPool


@dataclass(frozen=True)
class Dice:
    """What one advertiser met, realised; money as a fraction of its value per click.

    Attributes:
        gain: of the deviation over truth, per request it competes in, with a 95 % t-interval over
            the times that all requests were served: utility, or value for a value maximizer.
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
        gain=_estimate(gain.reshape(times, k)),
        lost=float((clicks - charges < -THRESHOLD).mean()),
    )


def _estimate(gain: Floats) -> Estimate:
    """The mean of gains (times, k), in clicks, and its interval over the times."""
    times, k = gain.shape
    mean = float(gain.mean())
    if times < 2:
        return Estimate(mean, -np.inf, np.inf)
    error = np.sqrt(gain.mean(axis=1).var(ddof=1) / times + 2 / (k * times) ** 2)
    reach = float(stdtrit(times - 1, 0.975) * error)
    return Estimate(mean, mean - reach, mean + reach)

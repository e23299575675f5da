"""What a scenario asks of memory: what no care can fit into this machine is refused beforehand.

The estimates are low, half to all of what was measured; so what passes may still not fit, and what
is refused does not. They belong to machine and run, not to the scenario, which may have been run
elsewhere.
"""

from __future__ import annotations

import os
from typing import Any

from mechanisms.candidates import GibbsMechanism
from mechanisms.errors import BadInput
from mechanisms.registry import MECHANISMS

PER_CELL = 24
"""Bytes for a request's reply and ad: click probability, exposure, and what they are drawn from; in
a round, for each ad, and each reply, of a request: probabilities, outcomes, payments."""
PER_ADVERTISER = 2000
PER_RECORD = 500
"""Bytes for an advertiser in a round: its row, and the columns of frames made of it."""
PER_GAIN = 7000
"""Bytes for an advertiser and replication: the bids tried to see what could still be gained."""


def check_replies_fit(scenario: Any) -> None:
    """Refuse a scenario whose candidate replies, or advertisers, are more than memory holds.

    Raises:
        BadInput: one line with the keys to lower.
    """
    Q, M, n = scenario.requests.queries, scenario.replies.per_request, scenario.requests.ads
    N = scenario.num_advertisers
    _check("population of advertisers, the sum of its counts", N, N * PER_ADVERTISER)
    _check("requests.queries x replies.per_request x requests.ads", Q * M * n, Q * M * n * PER_CELL)


def check_rounds_fit(scenario: Any) -> None:
    """Refuse a scenario of which a round, or the records of all rounds, are more than memory holds.

    Raises:
        BadInput: one line with the keys to lower.
    """
    R, N = scenario.replications, scenario.num_advertisers
    # compiled rounds keep nothing by reply
    if all(issubclass(MECHANISMS[arm.name], GibbsMechanism) for arm in scenario.arms):
        each, cells = "requests.ads", scenario.requests.ads
    else:
        each = "(requests.ads + replies.per_request)"
        cells = scenario.requests.ads + scenario.replies.per_request
    cells *= R * scenario.requests_per_round
    _check(f"requests_per_round x replications x {each}", cells, cells * PER_CELL)
    _check("replications x advertisers", R * N, R * N * PER_GAIN)
    records = scenario.rounds * R * N * len(scenario.arms)
    what = "rounds x replications x advertisers x mechanisms"
    _check(what, records, records * PER_RECORD)


def _check(what: str, count: int, needed: int) -> None:
    there = memory()
    if there is not None and needed > there:
        raise BadInput(
            f"{what} comes to {count:.3g}, at least {needed / 2**30:.3g} GB on a machine of "
            f"{there / 2**30:.3g} GB; ask for fewer"
        )


def memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None

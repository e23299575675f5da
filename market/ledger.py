"""The ledger: every round's records in arrays, checked as they come in, then as frames.

Two frames come out of it. `rounds` has a row per replication and round, all amounts means over the
round's requests; `advertisers` a row per replication, round and advertiser, all amounts sums over
the round's requests. What is expected (under the allocation) and what is realised (dice thrown)
have different columns; the docstrings of `rounds_frame` and `advertisers_frame` say which is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import polars as pl

from agents import Advertiser
from agents.platform import Tally
from market.result import Result
from mechanisms.base import Mechanism, Outcome
from mechanisms.gibbs import kl_from_reference
from mechanisms.pool import Floats, ReplyPool

__all__ = ["Ledger", "Result", "check_round", "measure"]

CHUNK = 512  # rounds allocated at a time
TOLERANCE = 1e-9

PER_ROUND = (
    "revenue", "expected_revenue", "welfare", "regularised_welfare", "user_satisfaction",
    "ads_per_reply", "kl", "ess", "clicks",
)  # fmt: skip
PER_ADVERTISER = (
    "bid", "requests", "exposure", "itctr", "clicks", "payments", "charges",
)  # fmt: skip


def measure(
    mechanism: Mechanism, batch: ReplyPool, outcome: Outcome, tally: Tally, values: Floats
) -> dict[str, Floats]:
    """What is measured of a round, each (R,), means over its requests.

    Args:
        mechanism: its `tau`, if any, weighs KL in regularised welfare; NaN without.
        batch: the R*B requests served, replication first.
        outcome: of these requests.
        tally: its sums by replication and advertiser, charges as settled.
        values: (N,) value per click.
    """
    R = len(tally.charges)
    B = len(outcome.chosen) // R

    def mean(by_request: Floats) -> Floats:
        return by_request.reshape(R, B).mean(axis=1)

    satisfaction = mean((outcome.probabilities * batch.quality).sum(axis=1))
    kl = np.full(R, np.nan)
    if mechanism.generation != "auction":  # whose replies no reference wrote
        kl = mean(kl_from_reference(batch.log_weights, outcome.probabilities))
    welfare = tally.itctr @ values / B + satisfaction
    tau = getattr(mechanism, "tau", np.nan)
    return {
        "revenue": tally.charges.sum(axis=1) / B,
        "expected_revenue": tally.payments.sum(axis=1) / B,
        "welfare": welfare,
        "regularised_welfare": welfare - tau * kl,
        "user_satisfaction": satisfaction,
        "ads_per_reply": tally.exposure.sum(axis=1) / B,
        "kl": kl,
        "ess": mean(batch.effective_sample_size),
        "clicks": tally.clicks.sum(axis=1) / B,
    }


def check_round(number: int, batch: ReplyPool, outcome: Outcome, tally: Tally) -> None:
    """Refuse a round whose books do not balance; `tally` as it comes from the platform.

    Raises:
        RuntimeError: naming the round, if probabilities are negative or do not sum to 1, an ad that
            was not shown is clicked, charges by advertiser do not sum to the platform's revenue, or
            an amount is NaN or infinite.
    """
    sums = outcome.probabilities.sum(axis=1)
    if not (np.abs(sums - 1) <= TOLERANCE).all() or outcome.probabilities.min() < 0:
        worst = sums[np.argmax(np.abs(sums - 1))]
        raise RuntimeError(f"round {number}: reply probabilities do not sum to 1 (e.g. {worst:g})")
    shown = batch.exposure[np.arange(len(outcome.chosen)), outcome.chosen]
    if (np.asarray(outcome.clicks, dtype=bool) & ~shown).any():
        raise RuntimeError(f"round {number}: an ad that was not shown is clicked")
    for field in fields(tally):
        if not np.isfinite(getattr(tally, field.name)).all():
            raise RuntimeError(f"round {number}: {field.name} of an advertiser: NaN or infinite")
    revenue = outcome.charges.reshape(len(tally.charges), -1).sum(axis=1)
    gap = np.abs(tally.charges.sum(axis=1) - revenue)
    if (gap > TOLERANCE * (1 + np.abs(outcome.charges).sum())).any():
        raise RuntimeError(f"round {number}: charges miss the revenue by {gap.max():g}")


class Ledger:
    """Records of a run: R replications, N advertisers, as many rounds as are recorded."""

    def __init__(self, label: str, advertisers: Sequence[Advertiser], replications: int) -> None:
        self.label = label
        self.advertisers = list(advertisers)
        self.replications = replications
        self.rounds = 0
        self._chunks: list[dict[str, Floats]] = []

    def record(self, bids: Floats, tally: Tally, measures: Mapping[str, Floats]) -> None:
        """Book a round: bids (R, N) as served, sums (R, N) as settled, `measures` (R,) each."""
        row = self.rounds % CHUNK
        if row == 0:
            self._chunks.append(self._blank())
        chunk = self._chunks[-1]
        for name in PER_ROUND:
            chunk[f"round.{name}"][row] = measures[name]
        chunk["bid"][row] = bids
        for name in PER_ADVERTISER[1:]:
            chunk[name][row] = getattr(tally, name)
        self.rounds += 1

    def latest(self, name: str) -> Floats:
        """(R,) last round's `name`, a column of `rounds`; NaN before the first round."""
        if not self.rounds:
            return np.full(self.replications, np.nan)
        return self._chunks[-1][f"round.{name}"][(self.rounds - 1) % CHUNK]

    def result(self) -> Result:
        """Frames of the rounds recorded so far, with their summary."""
        return Result.of(self.rounds_frame(), self.advertisers_frame())

    def rounds_frame(self) -> pl.DataFrame:
        """Rows by replication and round; every amount a mean over the round's requests.

        Realised: revenue, clicks. Expected: expected_revenue, welfare (advertisers' values and user
        satisfaction), regularised_welfare (less tau times KL; null for a mechanism without tau),
        user_satisfaction, ads_per_reply, kl (nats; null where no reference wrote the replies).
        ess: mean effective sample size of the weights.
        """
        R, T = self.replications, self.rounds
        columns = {
            "mechanism": pl.repeat(self.label, R * T, eager=True),
            "replication": np.repeat(np.arange(R), T),
            "round": np.tile(np.arange(T), R),
        }
        columns |= {name: self._table(f"round.{name}").ravel() for name in PER_ROUND}
        return pl.DataFrame(columns).with_columns(
            pl.col("regularised_welfare", "kl").fill_nan(None)
        )

    def advertisers_frame(self) -> pl.DataFrame:
        """Rows by replication, round and advertiser; every amount a sum over the round's requests.

        bid: as served, 0 once the budget is gone. Expected: exposure, itctr, payment,
        expected_utility. Realised: clicks, charge, utility, and, summed over the rounds so far,
        spend and roi (value of clicks per unit charged; null before anything is charged).
        """
        R, T, N = self.replications, self.rounds, len(self.advertisers)
        people = self.advertisers
        value = np.array([a.value for a in people])
        data = {name: self._table(name) for name in PER_ADVERTISER}
        gained = value * data["clicks"]
        spend = np.cumsum(data["charges"], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            roi = np.where(spend > 0, np.cumsum(gained, axis=1) / spend, np.nan)
        who = np.tile(np.arange(N), R * T)
        return pl.DataFrame(
            {
                "mechanism": pl.repeat(self.label, R * T * N, eager=True),
                "replication": np.repeat(np.arange(R), T * N),
                "round": np.tile(np.repeat(np.arange(T), N), R),
                "advertiser": who,
                "title": pl.Series([a.title for a in people], dtype=pl.String).gather(who),
                "objective": pl.Series([a.kind for a in people], dtype=pl.String).gather(who),
                "bid": data["bid"].ravel(),
                "value": value[who],
                "target_roi": np.array([a.target_roi for a in people])[who],
                "requests": data["requests"].ravel().astype(np.int64),
                "exposure": data["exposure"].ravel(),
                "itctr": data["itctr"].ravel(),
                "clicks": data["clicks"].ravel().astype(np.int64),
                "payment": data["payments"].ravel(),
                "charge": data["charges"].ravel(),
                "utility": (gained - data["charges"]).ravel(),
                "expected_utility": (value * data["itctr"] - data["payments"]).ravel(),
                "spend": spend.ravel(),
                "roi": roi.ravel(),
            }
        ).with_columns(pl.col("roi").fill_nan(None))

    def _blank(self) -> dict[str, Floats]:
        shape = (CHUNK, self.replications)
        blank = {f"round.{name}": np.empty(shape) for name in PER_ROUND}
        return blank | {name: np.empty((*shape, len(self.advertisers))) for name in PER_ADVERTISER}

    def _table(self, name: str) -> Floats:
        """(R, T, ...) all rounds of one record."""
        chunks = self._chunks or [self._blank()]
        by_round = np.concatenate([chunk[name] for chunk in chunks])[: self.rounds]
        return np.ascontiguousarray(by_round.swapaxes(0, 1))

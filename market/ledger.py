"""The ledger: every round's records, in arrays and on disk, then as frames.

Two frames come out of it. `rounds` has a row per replication and round, all amounts means over the
round's requests; `advertisers` a row per replication, round and advertiser, all amounts sums over
the round's requests. What is expected (under the allocation) and what is realised (dice thrown)
have different columns; the docstrings of `rounds_frame` and `advertisers_frame` say which is which.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from agents import Advertiser
from agents.tally import AMOUNTS, MEANS, TOLERANCE, Tally, Unbalanced
from market.result import Result
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

__all__ = ["PER_ROUND", "Ledger", "Result"]

CHUNK_BYTES = 2**22

PER_ROUND = (
    "revenue", "expected_revenue", "welfare", "regularised_welfare", "user_satisfaction",
    "ads_per_reply", "kl", "ess", "clicks",
)  # fmt: skip
# What is kept of a round and advertiser: the bid in the place of `shown`, which accounts keep.
RECORDED = ("bid", *AMOUNTS[1:])


class Ledger:
    """Records of a run: R replications, N advertisers, as many rounds as are recorded.

    Rounds fill a chunk of `CHUNK_BYTES`, and full chunks are appended to a temporary file: while a
    market is stepped memory stays flat, however long the run. (Frames and `result` are of all
    rounds, in memory.) The file has no name and is gone with the ledger, or with the process; it
    lies where `TMPDIR` says, which for long runs should be a disk.

    Every round's charges by advertiser must add up to what the platform asked for, less what it
    forgave, and no budget may be overspent: looked into a chunk at a time, and before any frame is
    made or any row handed out. (`agents.tally` looks into the rest of a round's books at once.)

    Args:
        label: what results call the run.
        advertisers: the N advertisers.
        replications: R.
        requests_per_round: B, over which `rounds` is averaged.
        tau: weight of KL in regularised welfare; NaN for a mechanism without.

    Attributes:
        rounds: rounds recorded.
    """

    def __init__(
        self,
        label: str,
        advertisers: Sequence[Advertiser],
        replications: int,
        requests_per_round: int,
        tau: float = np.nan,
    ) -> None:
        self.label = label
        self.advertisers = list(advertisers)
        self.replications = replications
        self.requests_per_round = requests_per_round
        self.tau = tau
        R, N = replications, len(self.advertisers)
        row = np.dtype(
            [("amounts", float, (len(RECORDED), R, N)), ("means", float, (len(MEANS), R))]
        )
        self._chunk = np.empty(max(1, CHUNK_BYTES // row.itemsize), row)
        self._amounts, self._means = self._chunk["amounts"], self._chunk["means"]
        self._budgets = np.array([each.budget for each in self.advertisers], dtype=np.float64)
        self._budgeted = bool(np.isfinite(self._budgets).any())
        self._begin()

    def _begin(self) -> None:
        """No records."""
        self.rounds = 0
        self._filled = 0  # rows of the chunk
        self._checked = 0  # of these
        self._spent = np.zeros((self.replications, len(self.advertisers)))  # until then
        self._file: IO[bytes] | None = None

    def record(self, bids: Floats, tally: Tally) -> None:
        """Book a round: `bids` (R, N) as served, `tally` as settled.

        Raises:
            Unbalanced: naming it, if an earlier round does not balance.
        """
        if self._filled == len(self._chunk):
            self._spill()
        row = self._filled
        self._amounts[row] = tally.amounts
        self._amounts[row, 0] = bids
        self._means[row] = tally.means
        self._filled += 1
        self.rounds += 1

    @property
    def row_bytes(self) -> int:
        """Size of a round's row."""
        return self._chunk.dtype.itemsize

    def rows(self, since: int = 0) -> NDArray[np.void]:
        """(T,) rows of the rounds from `since` on, as recorded: `amounts` and `means`; a copy.

        Raises:
            Unbalanced: naming the first round that does not balance.
        """
        self._check()
        late = [part[max(since - first, 0) :] for first, part in self._parts()]
        return np.concatenate([part for part in late if len(part)] or late[-1:])

    def restore(self, parts: Iterable[NDArray[np.void]]) -> None:
        """Begin anew with the `rows` of a ledger of the same market, in order.

        Raises:
            BadInput: rows of another market.
            Unbalanced: as `record`.
        """
        self._begin()
        for part in parts:
            if part.dtype != self._chunk.dtype:
                raise BadInput("the rows are of another market; make it as it was made then")
            while len(part):
                if self._filled == len(self._chunk):
                    self._spill()
                fits, part = np.split(part, [len(self._chunk) - self._filled])
                self._chunk[self._filled : self._filled + len(fits)] = fits
                self._filled += len(fits)
                self.rounds += len(fits)

    def latest(self, name: str) -> Floats:
        """(R,) last round's `name`, a column of `rounds`; NaN before the first round."""
        if not self.rounds:
            return np.full(self.replications, np.nan)
        amounts, means = self._amounts[self._filled - 1], self._means[self._filled - 1]
        return self._measures(
            {name: amounts[k][:, None] for k, name in enumerate(RECORDED)},
            {name: means[k][:, None] for k, name in enumerate(MEANS)},
        )[name][:, 0]

    def result(self) -> Result:
        """Frames of the rounds recorded so far, with their summary.

        Raises:
            Unbalanced: naming the round whose charges do not add up.
        """
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
        measures = self._measures(
            {name: self._table("amounts", k) for k, name in enumerate(RECORDED)},
            {name: self._table("means", k) for k, name in enumerate(MEANS)},
        )
        columns |= {name: measures[name].ravel() for name in PER_ROUND}
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
        data = {name: self._table("amounts", k) for k, name in enumerate(RECORDED)}
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

    def _measures(
        self, amounts: Mapping[str, Floats], means: Mapping[str, Floats]
    ) -> dict[str, Floats]:
        """(R, T) columns of `rounds` from amounts (R, T, N) and means (R, T)."""
        B = self.requests_per_round
        value = np.array([a.value for a in self.advertisers])
        welfare = amounts["itctr"] @ value / B + means["user_satisfaction"]
        return {
            "revenue": amounts["charges"].sum(axis=2) / B,
            "expected_revenue": amounts["payments"].sum(axis=2) / B,
            "welfare": welfare,
            "regularised_welfare": welfare - self.tau * means["kl"],
            "ads_per_reply": amounts["exposure"].sum(axis=2) / B,
            "clicks": amounts["clicks"].sum(axis=2) / B,
            **{name: mean for name, mean in means.items() if name in PER_ROUND},
        }

    def _spill(self) -> None:
        """Append the chunk to the file, and start it anew."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="admarket-")  # noqa: SIM115 (as long as self)
        self._check()
        self._file.write(self._chunk[: self._filled].view(np.uint8))
        self._filled = self._checked = 0

    def _check(self) -> None:
        """Refuse rounds, of those not looked into yet, that do not balance."""
        unseen = self._chunk[self._checked : self._filled]
        if not len(unseen):
            return
        charges = unseen["amounts"][:, RECORDED.index("charges")]
        self._check_revenue(unseen, charges)
        if self._budgeted:
            self._check_budgets(charges)
        self._checked = self._filled

    def _check_revenue(self, unseen: NDArray[np.void], charges: Floats) -> None:
        """Charges (T, R, N) add up to what the platform asked for."""
        payments = unseen["amounts"][:, RECORDED.index("payments")]
        revenue = unseen["means"][:, MEANS.index("charged")] * self.requests_per_round
        gap = np.abs(charges.sum(axis=2) - revenue)
        # payments are not capped: where much was forgiven, rounding is of their size
        size = 1 + np.abs(charges).sum(axis=2) + np.abs(payments).sum(axis=2)
        lost = ~(gap <= TOLERANCE * size)
        if lost.any():
            row = int(lost.any(axis=1).argmax())
            raise Unbalanced(
                f"round {self._number(row)}: charges miss the revenue by {gap[row].max():g}"
            )

    def _check_budgets(self, charges: Floats) -> None:
        """No advertiser is charged more than its budget, all rounds together."""
        spent = self._spent + np.cumsum(charges, axis=0)
        over = ~(spent <= self._budgets * (1 + TOLERANCE))
        if over.any():
            row, r, i = np.argwhere(over)[0]
            raise Unbalanced(
                f"round {self._number(row)}: {self.advertisers[i].title} has paid "
                f"{spent[row, r, i]:.10g} in replication {r}, of a budget of {self._budgets[i]:g}"
            )
        self._spent = spent[-1]

    def _number(self, row: int) -> int:
        """The round of a row, counted from the first that is not checked yet."""
        return self.rounds - self._filled + self._checked + int(row)

    def _parts(self) -> list[tuple[int, NDArray[np.void]]]:
        """All rows, on disk and in memory, each with the round of its first."""
        spilled = self.rounds - self._filled
        parts = [(spilled, self._chunk[: self._filled])]
        if self._file is not None:
            self._file.flush()
            rows = np.memmap(self._file, self._chunk.dtype, "r", shape=(spilled,))
            parts.insert(0, (0, rows))
        return parts

    def _table(self, kind: str, k: int) -> Floats:
        """(R, T, ...) the k-th record of a kind, of all rounds."""
        self._check()
        by_round = np.concatenate([part[kind][:, k] for _, part in self._parts()])
        return np.ascontiguousarray(by_round.swapaxes(0, 1))

"""Books are checked on every run: whatever breaks one stops the run, and names the round."""

import numpy as np
import polars as pl
import pytest

from agents.tally import AMOUNTS, MEANS, Tally, Unbalanced
from market.ledger import RECORDED, Ledger
from market.model import MarketModel
from mechanisms.base import Mechanism, Outcome
from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from tests.market.stopping import market

AT = 7


class Failing(Mechanism):
    """Mosaic, whose outcomes go wrong in one round of a market: the others are sound."""

    name = "failing"

    def __init__(self, spoil):
        self.spoil, self.rounds = spoil, 0

    def allocate(self, pool, bids):
        return Mosaic(0.3).allocate(pool, bids)

    def charge(self, pool, bids, allocation, chosen, clicks):
        return allocation.payments

    def run(self, pool, bids, rng):
        outcome = super().run(pool, bids, rng)
        self.rounds += 1
        if self.rounds - 1 == AT:
            outcome = Outcome(**vars(outcome) | self.spoil(outcome))
        return outcome


BROKEN = {
    "probabilities do not sum to 1": lambda o: {"probabilities": o.probabilities * (1 + 1e-6)},
    "an ad that was not shown is clicked": lambda o: {"clicks": np.ones_like(o.clicks)},
    "charges of an advertiser: NaN": lambda o: {"charges": o.charges * np.nan},
    "payments of an advertiser: NaN": lambda o: {"payments": o.payments + np.inf},
}


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_outcome_stops_the_run_in_its_round(said, kernel, monkeypatch):
    monkeypatch.setenv("ADMARKET_KERNEL", kernel)
    market(("truthful",), mechanism=Failing(lambda _: {})).run()
    model = market(("truthful",), mechanism=Failing(BROKEN[said]))
    with pytest.raises(Unbalanced, match=f"round {AT}: .*{said}"):
        model.run()
    assert model.round == AT


def test_a_budget_that_is_overspent_stops_the_run(monkeypatch):
    """By a market that forgets to cap what is charged."""
    people = market(("truthful",)).run().advertisers
    broke = people.filter((pl.col("advertiser") < 3) & (pl.col("spend") >= 0.8 * (1 - 1e-9)))
    monkeypatch.setattr(MarketModel, "settle", lambda self, tally: self.account.settle(tally))
    with pytest.raises(Unbalanced, match=r"Ad [012] has paid .*, of a budget of 0\.8") as stopped:
        market(("truthful",)).run()
    assert str(stopped.value).startswith(f"round {broke['round'].min()}: ")


def ledger_of(charges, budgets, chunk=None, monkeypatch=None):
    """A ledger of (T, R, N) charges that add up, by advertisers with these budgets."""
    if chunk is not None:
        monkeypatch.setattr("market.ledger.CHUNK_BYTES", chunk)
    _, R, N = charges.shape

    class Person:
        value, target_roi, kind = 1.0, 1.0, "utility"

        def __init__(self, i):
            self.title, self.budget = f"Ad {i}", budgets[i]

    ledger = Ledger("x", [Person(i) for i in range(N)], R, 2)
    for charged in charges:
        amounts, means = np.zeros((len(AMOUNTS), R, N)), np.zeros((len(MEANS), R))
        amounts[AMOUNTS.index("charges")] = charged
        means[MEANS.index("charged")] = charged.sum(axis=1) / 2
        ledger.record(np.zeros((R, N)), Tally(amounts, means))
    return ledger


@pytest.mark.parametrize("chunk", [None, 500])
def test_budgets_are_of_all_rounds_together_however_they_are_kept(chunk, monkeypatch):
    charges = np.full((20, 2, 3), 0.5)
    charges[:, 1, 2] = 0.7
    ledger = ledger_of(charges, [10.0, np.inf, 14.0], chunk, monkeypatch)
    ledger.rows()  # to the last cent
    with pytest.raises(Unbalanced, match=r"round 19: Ad 2 has paid 14 in replication 1, .* 13.5"):
        ledger_of(charges, [10.0, np.inf, 13.5], chunk, monkeypatch).rows()
    with pytest.raises(Unbalanced, match=r"round 15: Ad 0 has paid 8 in replication 0, .* 7.5"):
        ledger_of(charges, [7.5, np.inf, 14.0], chunk, monkeypatch).rows()


@pytest.mark.parametrize("chunk", [None, 500])
def test_rows_come_back_into_another_ledger(chunk, monkeypatch):
    charges = np.random.default_rng(0).random((23, 2, 3))
    ledger = ledger_of(charges, [np.inf] * 3, chunk, monkeypatch)
    rows = ledger.rows()
    assert len(rows) == 23 and rows.nbytes == 23 * ledger.row_bytes
    np.testing.assert_array_equal(rows["amounts"][:, RECORDED.index("charges")], charges)
    for since in (0, 1, 9, 22, 23):
        assert ledger.rows(since).tobytes() == rows[since:].tobytes()
    other = ledger_of(charges[:4], [np.inf] * 3)
    other.restore([rows[:9], rows[9:9], rows[9:]])
    assert other.rounds == 23 and other.rows().tobytes() == rows.tobytes()
    assert other.rounds_frame().equals(ledger.rounds_frame())
    with pytest.raises(BadInput, match="rows are of another market"):
        ledger_of(charges[:, :, :2], [np.inf] * 2).restore([rows])
    poor = ledger_of(charges[:1], [2.0, np.inf, np.inf])
    with pytest.raises(Unbalanced, match="Ad 0 has paid"):  # what is read is checked, too
        poor.restore([rows])
        poor.rows()

"""Format compliance: shares and their intervals, and replies that comply."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mechanisms.llm_auction.compliance import complies, share

quick = settings(max_examples=150, deadline=None)


def test_replies_that_comply():
    ads, malformed = [1, 0, 2, 1, 0], [0, 0, 0, 1, 2]
    assert complies(ads, malformed).tolist() == [True, False, False, False, False]
    assert complies(ads, malformed, 2).tolist() == [True, False, True, False, False]


@quick
@given(st.integers(0, 400), st.integers(0, 400))
def test_wilsons_interval(a, b):
    count, total = min(a, b), max(a, b, 1)
    found = share(count, total)
    assert 0 <= found.low <= found.value <= found.high <= 1
    theirs = binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert found.low == pytest.approx(theirs.low, abs=1e-6)
    assert found.high == pytest.approx(theirs.high, abs=1e-6)
    mirrored = share(total - count, total)
    assert mirrored.low == pytest.approx(1 - found.high)


def test_a_share_reads():
    assert str(share(95, 100)) == "95.0% [88.8%, 97.8%]"
    assert np.isnan(share(0, 0).value)
    assert share(0, 0)[3:] == (0, 1)

"""Format compliance: shares and their intervals, and what an LLM may write to look compliant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mechanisms.errors import BadInput
from mechanisms.llm_auction.compliance import FormatCompliance, share
from mechanisms.mentions import FAULTS, disarm, parse, render
from tests.mechanisms.hostile import ATTACKS
from tests.tiny_llm import ADS

BED, TEA, OAK = (render(ad) for ad in ADS)
quick = settings(max_examples=150, deadline=None)
pieces = st.sampled_from(["@", "[", "]", "Ad-1", "Ad-2", "Tea Pot", " ", "\n", BED, TEA, "Ad-9"])
noise = st.lists(pieces | st.text(max_size=3), max_size=20).map("".join)


def of(*texts, max_ads=1):
    return FormatCompliance.of_texts(texts, [ADS] * len(texts), max_ads)


@pytest.mark.parametrize(
    ("text", "well_formed", "mentions"),
    [
        (f"Sleep well. Try {BED}.", 1, 1),
        ("Sleep well.", 1, 0),
        ("", 1, 0),
        (f"{BED} or {TEA}", 1, 0),  # one ad too many
        (f"{BED} or {BED}", 0, 0),
        (f"{BED} or @Nobody@[Ad-9]", 0, 0),
        ("@Bed@[Ad-1]", 0, 0),
    ],
)
def test_one_reply(text, well_formed, mentions):
    found = of(text)
    assert (found.well_formed.count, found.mentions.count) == (well_formed, mentions)


def test_more_ads_may_be_allowed():
    assert of(f"{BED} or {TEA}", max_ads=2).mentions.count == 1
    assert of(f"{BED}, {TEA} or {OAK}", max_ads=2).mentions.count == 0


def test_faults_are_counted_by_reason():
    texts = [f"{BED} {BED} @Bed@[Ad-1]", "@Tea Pot@[Ad-9] @Tea Pot@[", TEA, "@Tea@[Ad-2]"]
    found = of(*texts)
    assert found.faults == {
        "malformed": 1,
        "unknown-id": 1,
        "altered-title": 2,
        "duplicate": 1,
    }
    assert tuple(found.faults) == FAULTS
    assert found.well_formed[:3] == (1, 4, 0.25)
    assert sum(found.faults.values()) == sum(parse(text, ADS).malformed for text in texts)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("@Tea Pot[Ad-2]", 1),
        ("@Tea Pot (Ad-2)", 1),
        ("Tea Pot@[Ad-2]", 1),
        ("Tea Pot [ Ad-2 ]", 1),
        ("@Tea Pot", 1),
        ("Tea Pot, write to me@home.org", 0),
        ("the Tea Pot of Ad-2", 0),
        (f"{TEA} [Ad-9]", 0),
        (f"{TEA} and [Ad-2]", 1),
        (f"@{TEA}", 0),
        ("@Tea Pot@[Ad-2", 0),  # malformed, and counted there
    ],
)
def test_fragments_of_markers(text, fragment):
    """What is too broken to look like a marker is told, since no fault tells of it."""
    assert of(text).fragments.count == fragment


@quick
@given(st.lists(noise, min_size=1, max_size=6), st.integers(1, 3))
def test_of_anything(texts, max_ads):
    found = of(*texts, max_ads=max_ads)
    parsed = [parse(text, ADS) for text in texts]
    assert sum(found.faults.values()) == sum(each.malformed for each in parsed)
    assert found.well_formed.count == sum(each.malformed == 0 for each in parsed)
    assert found.mentions.count <= found.well_formed.count
    counted = FormatCompliance.of_counts(
        [len(each.ads) for each in parsed], [each.malformed for each in parsed], max_ads
    )
    assert counted.well_formed == found.well_formed
    assert counted.mentions == found.mentions
    assert counted.faults is None
    # What is shown of any reply has nothing to count: that is why raw texts are wanted.
    assert of(*map(disarm, texts)).well_formed.value == 1


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_complies(name):
    """An LLM that repeats an attack shows no ad in the right form but by its exact marker."""
    text = ATTACKS[name]
    found = of(text)
    exact = [ad for ad in ADS if render(ad) in text]
    assert found.mentions.count <= len(exact)
    if text.count("@") > 1 and not exact and "@[" in text:
        assert found.mentions.count == 0


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


def test_bad_input():
    with pytest.raises(BadInput, match="2 texts come with 1 lists"):
        FormatCompliance.of_texts(["", ""], [ADS])
    with pytest.raises(BadInput, match="max_ads is 0"):
        of("", max_ads=0)
    with pytest.raises(BadInput, match=r"shape \(2,\), malformed mentions \(3,\)"):
        FormatCompliance.of_counts([0, 1], [0, 0, 0])

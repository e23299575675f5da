"""Sample replies: texts, ads and charges belong together."""

import numpy as np
import pytest

from experiments.samples import Segment, sample_replies, split_mentions
from mechanisms.pool import ReplyPool
from tests.experiments import small_run


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("", ()),
        ("no ad", (Segment("no ad"),)),
        ("@A b@[Ad-1]", (Segment("A b", "Ad-1"),)),
        (
            "try @A b@[Ad-1], or @C@[Ad-2].",
            (
                Segment("try "),
                Segment("A b", "Ad-1"),
                Segment(", or "),
                Segment("C", "Ad-2"),
                Segment("."),
            ),
        ),
        ("mail me@home.org @ ten [1]", (Segment("mail me@home.org @ ten [1]"),)),
        ("@<b>@[Ad-3]", (Segment("<b>", "Ad-3"),)),
    ],
)
def test_replies_are_cut_at_mentions(text, segments):
    assert split_mentions(text) == segments


@pytest.mark.parametrize("name", small_run.MECHANISMS)
def test_samples_show_what_the_mechanism_did(name):
    pool, people = small_run.pool(), small_run.PEOPLE
    rng = np.random.default_rng(3)
    samples = sample_replies(
        pool, small_run.mechanism(name), people.truthful_bids, rng, 5
    )  # fmt: skip
    assert len({sample.request for sample in samples}) == 5
    for sample in samples:
        assert sample.query.startswith(f"What about {sample.request}?")
        assert sample.condition == "context" and 0 < sample.probability <= 1
        mentioned = {part.ad_id for part in sample.segments if part.ad_id}
        assert mentioned == {ad.id for ad in sample.ads if ad.shown}
        assert {ad.advertiser for ad in sample.ads} == set(pool.ads[sample.request])
        for ad in sample.ads:
            assert ad.id == f"Ad-{ad.advertiser}"
            assert ad.title == small_run.TITLES[ad.advertiser]
            assert ad.bid == people.truthful_bids[ad.advertiser]
            assert (ad.click_probability > 0) == ad.shown
            assert ad.shown or not ad.clicked
            if name == "llm-auction-ideal":
                assert ad.charge == (ad.bid if ad.clicked else 0)


def test_at_most_one_sample_a_request_and_equal_seeds_agree():
    pool, mechanism = small_run.pool(), small_run.mechanism("mosaic")
    one, two = (
        sample_replies(pool, mechanism, np.ones(small_run.N), np.random.default_rng(1), 99)
        for _ in range(2)
    )
    assert len(one) == pool.shape[0] and one == two


def test_without_texts_there_is_nothing_to_read():
    pool = ReplyPool.synthetic(3, 4, 2, np.random.default_rng(0))
    assert (
        sample_replies(pool, small_run.mechanism("mosaic"), np.ones(2), np.random.default_rng(0))
        == []
    )

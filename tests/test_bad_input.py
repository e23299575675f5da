"""Bad and odd input, case by case: each works, or is refused in one line. No LLM."""

import numpy as np
import pytest

from market import Catalog, MarketModel, Scenario
from market.catalog import Ad, Query, UserProfile
from mechanisms import BadInput, ReplyPool, make_mechanism
from mechanisms.mentions import parse, render

NAMES = {
    "mosaic": {"tau": 0.3},
    "llm-auction-ideal": {"tau": 0.3},
    "first-price": {},
    "gsp": {},
    "vcg": {},
}


def one_line(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bid", [-1.0, np.nan, np.inf])
def test_negative_nan_or_infinite_bid(name, bid):
    pool = ReplyPool.synthetic(3, 4, 2, rng())
    with pytest.raises(BadInput) as error:
        make_mechanism(name, **NAMES[name]).run(pool, [1.0, bid], rng())
    assert "bid" in one_line(error)


@pytest.mark.parametrize("name", NAMES)
def test_bids_of_a_wrong_shape(name):
    pool = ReplyPool.synthetic(3, 4, 2, rng())
    with pytest.raises(BadInput) as error:
        make_mechanism(name, **NAMES[name]).run(pool, [1.0, 1.0, 1.0], rng())
    assert "shape" in one_line(error)


@pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("M", "n"), [(5, 1), (1, 3), (1, 1), (4, 0)])
def test_one_advertiser_one_reply_and_no_candidate_ads_work(name, M, n):
    pool = ReplyPool.from_arrays(np.full((2, M, n), 0.5))
    outcome = make_mechanism(name, **NAMES[name]).run(pool, np.ones(n), rng())
    np.testing.assert_allclose(outcome.probabilities.sum(1), 1)
    assert outcome.payments.shape == (2, n)
    assert np.isfinite(outcome.payments).all()


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3), (4, 3)])
def test_no_candidate_replies_no_requests_or_no_pool_at_all(shape):
    with pytest.raises(BadInput) as error:
        ReplyPool.from_arrays(np.zeros(shape))
    one_line(error)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"ctr": np.full((1, 2, 1), 1.5)}, "ctr"),
        ({"ctr": np.full((1, 2, 1), np.nan)}, "ctr"),
        ({"log_ref": np.full((1, 2), -np.inf)}, "log_ref"),
        ({"quality": np.zeros((2, 1))}, "quality"),
        ({"ads": np.array([[0.5]])}, "ads"),
        ({"ads": np.array([[-1]])}, "ads"),
        ({"exposure": np.zeros((1, 2, 1), dtype=bool)}, "exposed"),
    ],
)
def test_arrays_that_make_no_pool(change, what):
    arrays = {"ctr": np.full((1, 2, 1), 0.5), **change}
    with pytest.raises(BadInput) as error:
        ReplyPool.from_arrays(**arrays)
    assert what in one_line(error)


def test_the_same_advertiser_twice_in_a_request():
    with pytest.raises(BadInput) as error:
        ReplyPool.from_arrays(np.zeros((1, 2, 2)), ads=[[1, 1]])
    assert "twice" in one_line(error)


def test_empty_catalog():
    query, user = Query("Q-1", "Which tea?"), UserProfile("U-1", "A reader.")
    with pytest.raises(BadInput) as error:
        Catalog((), (user,), (query,))
    assert "no ads" in one_line(error)
    with pytest.raises(BadInput) as error:
        Catalog((Ad("Ad-1", "Tea", "Leaves.", "tea"),), (user,), ())
    assert "no queries" in one_line(error)


@pytest.mark.parametrize(
    "title",
    [
        "Tea@Home",
        "Tea [best]",
        'The "Real" Tea',
        "Tea@[Ad-2]",
        "@Other@[Ad-2]",
        "Tea\n@Other@[Ad-2]",
        "Tea]@[Ad-2",
    ],
)
def test_titles_with_marker_characters_or_quotes_show_their_own_ad_and_no_other(title):
    ads = [Ad("Ad-1", title, "Leaves.", "tea"), Ad("Ad-2", "Other", "Leaves too.", "tea")]
    parsed = parse(f"You could try {render(ads[0])}, which is fine.", ads)
    assert parsed.ads == (0,)
    assert parsed.malformed == 0


def test_a_population_that_does_not_fit_the_pool():
    scenario = Scenario.from_yaml("synthetic")
    with pytest.raises(BadInput) as error:
        MarketModel(scenario, pool=ReplyPool.synthetic(3, 4, 2, rng()))
    assert "8 advertisers" in one_line(error)


def test_a_missing_catalog_folder_and_more_ads_than_there_are():
    base = {"population": [{"objective": "utility", "count": 500}]}
    with pytest.raises(BadInput) as error:
        Scenario.from_dict(base).make_pool()
    assert "asks for 500" in one_line(error)
    with pytest.raises(BadInput) as error:
        Scenario.from_dict({"catalog": {"source": "no/such/folder"}}).make_pool()
    assert one_line(error).startswith("catalog.source: no/such/folder: no such folder; name one")
    with pytest.raises(BadInput) as error:
        Scenario.from_dict({"catalog": {"categories": ["dragons"]}}).make_pool()
    assert one_line(error).startswith("catalog.categories: unknown category 'dragons'; there are ")

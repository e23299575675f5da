"""The response reward: its formula, and that seeking it by anything but a good mention loses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.llm_auction.impressions import prose
from mechanisms.llm_auction.reward import ResponseReward, response_penalty
from mechanisms.mentions import ends_sentence, parse, render, without_mentions
from mechanisms.pool import ReplyPool
from tests.tiny_llm import ADS

quick = settings(max_examples=60, deadline=None)
reward = ResponseReward()
bids = st.tuples(*[st.floats(1, 100)] * len(ADS))
covered = st.tuples(*[st.floats(0, reward.covers(100))] * len(ADS))
anything = st.tuples(*[st.floats(0, 1)] * len(ADS))
which = st.integers(0, len(ADS) - 1)

HONEST = "Keep the room cool. You could try {}, which many like. Read before you sleep."


def worth(text, bids, ctr, reward=reward):
    """R of a reply as it is written: parsed, and rewarded for what it shows."""
    found = parse(text, ADS)
    exposure = np.zeros((1, 1, len(ADS)), dtype=bool)
    exposure[0, 0, list(found.ads)] = True
    complete = [[ends_sentence(without_mentions(text))]]
    given = np.array([bids]), np.array([[ctr]]), exposure, [[float(found.malformed)]], complete
    return float(reward(*given)[0, 0])


def altered(ad):
    return render(ad).replace(ad.title, ad.title.upper())


def forged(ad):
    return render(ad).replace(ad.id, "Ad-999")


def of_another(ad):
    other = ADS[(ADS.index(ad) + 1) % len(ADS)]
    return render(ad).replace(ad.id, other.id)


MALFORMED = (altered, forged, of_another, lambda ad: render(ad) + "]" + forged(ad))
MORE_OF_IT = (
    lambda ad: render(ad) + " " + render(ad),
    lambda ad: " ".join([render(ad)] * 20),
    lambda ad: render(ad) + " or " + altered(ad),
    lambda ad: render(ad) + " or " + forged(ad),
    lambda ad: render(ad) + " or @The Best@[Ad-0]",
    lambda ad: render(ad) + ", that is " + of_another(ad),
)


@quick
@given(which, bids, anything)
def test_an_honest_mention_earns_what_it_brings(ad, bids, ctr):
    honest = HONEST.format(render(ADS[ad]))
    assert worth(honest, bids, ctr) == pytest.approx(bids[ad] * ctr[ad])
    assert worth(HONEST.format("tea"), bids, ctr) == 0


@quick
@given(which, bids, anything, anything, st.sampled_from(MALFORMED))
def test_forged_ids_and_altered_titles_lose(ad, bids, ctr, believed, hack):
    """Whatever anyone bids, and whatever a click model believes of the reply."""
    honest = worth(HONEST.format(render(ADS[ad])), bids, ctr)
    cheat = HONEST.format(hack(ADS[ad]))
    shown = parse(cheat, ADS).ads
    assert shown in ((), (ad,))
    if shown:  # an honest mention beside the forged one
        assert worth(cheat, bids, ctr) <= honest - reward.user_weight
    else:
        assert worth(cheat, bids, believed) <= -reward.user_weight < 0 <= honest


@quick
@given(which, bids, anything, st.sampled_from(MORE_OF_IT))
def test_saying_it_again_loses(ad, bids, ctr, hack):
    """A marker for each time; all but the first are malformed and expose nobody."""
    honest = HONEST.format(render(ADS[ad]))
    cheat = HONEST.format(hack(ADS[ad]))
    assert parse(cheat, ADS).ads == (ad,)
    extra = parse(cheat, ADS).malformed
    assert extra > 0
    lost = worth(honest, bids, ctr) - worth(cheat, bids, ctr)
    assert lost == pytest.approx(extra * reward.user_weight)


@quick
@given(which, bids, covered, covered, st.sampled_from(MORE_OF_IT))
def test_no_click_model_can_be_talked_into_it(ad, bids, ctr, believed, hack):
    """Even if it predicts anything else (within what is covered) where a title is said again."""
    honest = worth(HONEST.format(render(ADS[ad])), bids, ctr)
    cheat = worth(HONEST.format(hack(ADS[ad])), bids, believed)
    assert cheat <= honest + 1e-9
    assert cheat < honest or max(bids) > 99


@quick
@given(which, bids, covered, st.permutations(range(len(ADS))))
def test_inserting_every_ad_loses(ad, bids, ctr, order):
    """Against the honest reply with the best of them, and with any other of them too."""
    everyone = HONEST.format(" or ".join(render(ADS[i]) for i in order))
    assert sorted(parse(everyone, ADS).ads) == list(range(len(ADS)))
    best = max(range(len(ADS)), key=lambda i: bids[i] * ctr[i])
    all_of_them = worth(everyone, bids, ctr)
    assert all_of_them <= worth(HONEST.format(render(ADS[best])), bids, ctr) + 1e-9
    assert all_of_them <= worth(HONEST.format(render(ADS[ad])), bids, ctr) + 1e-9


@quick
@given(bids, anything, st.permutations(range(len(ADS))), st.integers(1, len(ADS)))
def test_any_click_probability_is_covered_where_the_weight_is_the_highest_bid(
    bids, ctr, order, count
):
    strict = ResponseReward(user_weight=max(bids))
    assert strict.covers(max(bids)) == 1
    many = HONEST.format(" or ".join(render(ADS[i]) for i in order[:count]))
    one = HONEST.format(render(ADS[order[0]]))
    assert worth(many, bids, ctr, strict) <= worth(one, bids, ctr, strict) + 1e-9


def test_what_is_not_covered_pays():
    """The bound is sharp: above it a second ad is worth its penalty. So λ has to be chosen."""
    both = HONEST.format(f"{render(ADS[0])} or {render(ADS[1])}")
    alone = HONEST.format(render(ADS[0]))
    bids = (100, 100, 1)
    assert reward.covers(100) == pytest.approx(0.4)
    for ctr, pays in ((0.39, False), (0.41, True)):
        assert (worth(both, bids, (ctr,) * 3) > worth(alone, bids, (ctr,) * 3)) == pays


@quick
@given(which, st.lists(st.sampled_from([" ", ", ", " - ", ". ", "! "]), max_size=8))
def test_a_click_model_does_not_see_titles(ad, between):
    """Said plainly, as often as one likes and in any case, a title is no marker and no prose."""
    title = ADS[ad].title
    plain = "".join(f"{each}{title}" for each in between)
    shouted = plain.upper()
    titles = [each.title for each in ADS]
    honest = prose(HONEST.format(render(ADS[ad])), titles)
    for more in (plain, shouted):
        again = HONEST.format(render(ADS[ad]) + more)
        assert parse(again, ADS).malformed == 0
        assert prose(again, titles).replace(" ", "") == honest.replace(" ", "")
    assert title not in honest
    assert "You could try" in honest


def test_prose_keeps_words_that_hold_a_title():
    assert prose("Another tea for the others.", ["the", "Tea"]) == "Another for others."
    assert prose("@Tea Pot@[Ad-2] Pots. mail@home", ["Tea", "Tea Pot"]) == "Pots. mailhome"


def test_formula():
    """By hand: two requests, three replies, two ads."""
    bids = np.array([[10.0, 50.0], [100.0, 1.0]])
    ctr = np.full((2, 3, 2), 0.1)
    exposure = np.array([[[1, 0], [1, 1], [0, 0]], [[0, 1], [1, 1], [1, 0]]], dtype=bool)
    malformed = np.array([[0, 1, 2], [0, 0, 1]])
    complete = np.array([[1, 1, 0], [0, 1, 1]], dtype=bool)
    found = ResponseReward(user_weight=40, max_ads=1, unfinished=0.25)
    expected = [[1, 6 - 80, -80 - 10], [0.1 - 10, 10.1 - 40, 10 - 40]]
    np.testing.assert_allclose(found(bids, ctr, exposure, malformed, complete), expected)
    np.testing.assert_allclose(
        found(bids, ctr, exposure, malformed), [[1, -74, -80], [0.1, -29.9, -30]]
    )
    each = np.broadcast_to(bids[:, None], ctr.shape)  # bids of its own for each reply
    np.testing.assert_allclose(found(each, ctr, exposure, malformed, complete), expected)
    hidden = np.where(exposure, ctr, np.nan)  # a model need not say what is not shown
    np.testing.assert_allclose(found(bids, hidden, exposure, malformed, complete), expected)


def test_the_ideal_rule_has_the_same_penalty():
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(6, 9, 4, rng)
    for most in (0, 1, 2):
        ours = response_penalty(pool.exposure, pool.malformed, most)
        ideal = IdealLLMAuction(tau=1.0, user_weight=1.0, max_ads=most)
        np.testing.assert_array_equal(ours, ideal.response_penalty(pool))
        np.testing.assert_array_equal(
            ours, pool.malformed + np.maximum(pool.exposure.sum(2) - most, 0)
        )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"bids": [[1.0, -1.0]]}, "bids"),
        ({"bids": [[1.0, np.nan]]}, "bids"),
        ({"bids": [[1.0]]}, "bids has shape"),
        ({"ctr": [[[0.1, 1.1]]]}, "outside"),
        ({"ctr": [[[0.1, np.nan]]]}, "outside"),
        ({"ctr": [[[0.1]]]}, "ctr has shape"),
        ({"malformed": [[-1.0]]}, "malformed"),
        ({"malformed": [0.0]}, "malformed has shape"),
        ({"complete": [True]}, "complete has shape"),
        ({"exposure": [[True, True]]}, "exposure has shape"),
    ],
)
def test_bad_input(changed, says):
    good = {
        "bids": [[1.0, 2.0]],
        "ctr": [[[0.1, 0.2]]],
        "exposure": [[[True, True]]],
        "malformed": [[0.0]],
    }
    assert reward(**good).shape == (1, 1)
    with pytest.raises(BadInput, match=says):
        reward(**{**good, **changed})


def test_bad_parameters():
    for wrong in ({"user_weight": -1}, {"max_ads": 1.5}, {"unfinished": np.nan}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            ResponseReward(**wrong)

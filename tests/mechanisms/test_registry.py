"""Mechanisms by name, and how wrong names, parameters and values are refused."""

import pytest

from mechanisms.errors import BadInput
from mechanisms.registry import MECHANISMS, make_mechanism
from tests.mechanisms.pools import VARIANTS, variant


@pytest.mark.parametrize("key", VARIANTS)
def test_parameters_rebuild_the_mechanism(key):
    mechanism = variant(key)
    assert make_mechanism(mechanism.name, **mechanism.parameters) == mechanism
    assert VARIANTS[key][1].items() <= mechanism.parameters.items()


def test_names():
    assert list(MECHANISMS) == [
        "mosaic",
        "llm-auction",
        "llm-auction-ideal",
        "iamfm-elimination",
        "iamfm-model",
        "first-price",
        "gsp",
        "vcg",
        "segment",
        "pretrained",
        "token",
    ]
    defaults = {"tau": 0.3, "offset": True, "settlement": "expected", "reward": "clicks"}
    assert make_mechanism("mosaic", tau=0.3).parameters == defaults


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "lottery",
            {},
            "no mechanism 'lottery'; there are mosaic, llm-auction, llm-auction-ideal, iamfm",
        ),
        ("mozaic", {}, r"no mechanism 'mozaic'; did you mean 'mosaic'\?"),
        ("mosaic", {"tua": 1}, r"mosaic has no parameter 'tua'; did you mean 'tau'\?"),
        ("mosaic", {}, "mosaic needs parameter 'tau'; in a scenario, write {name: mosaic, p"),
        ("llm-auction", {"ad_llm": 3}, "ad_llm is 3; give the name of a bundled Ad-LLM, or"),
        ("llm-auction", {"estimate": "guess"}, "estimate is 'guess'; give one of 'surface'"),
        ("llm-auction", {"bandwidth": 0}, "bandwidth is 0; give a finite number > 0"),
        ("mosaic", {"tau": 0}, "tau is 0; give a finite number > 0"),
        ("mosaic", {"tau": "warm"}, "tau is 'warm'"),
        ("mosaic", {"tau": 1, "offset": 1}, "offset is 1; give one of True, False"),
        ("mosaic", {"tau": 1, "settlement": "later"}, "give one of 'expected', 'realised'"),
        ("llm-auction-ideal", {"tau": 1, "user_weight": -1}, "user_weight is -1"),
        ("llm-auction-ideal", {"tau": 1, "max_ads": 1.5}, "max_ads is 1.5; give a whole number"),
        ("gsp", {"slots": 0}, "slots is 0; give a whole number >= 1"),
        ("vcg", {"reserve": float("inf")}, "reserve is inf"),
        ("segment", {"segments": 4}, "segments is 4; give one of 1, 2, 3"),
        ("segment", {"segments": 1.0}, "segments is 1.0; give one of 1, 2, 3"),
        ("segment", {"no_ad": -1}, "no_ad is -1; give a finite number >= 0"),
        ("segment", {"reserve": 1}, "no parameter 'reserve'; it has segments, no_ad"),
        ("first-price", {"tau": 1}, "no parameter 'tau'; it has slots, reserve"),
    ],
)
def test_refuses(name, parameters, message):
    with pytest.raises(BadInput, match=message) as refused:
        make_mechanism(name, **parameters)
    assert "\n" not in str(refused.value)

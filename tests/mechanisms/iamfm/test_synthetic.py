"""Synthetic problems: means are exact, samples are a function, advertisers compete."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.synthetic import FULL, SHORT, SyntheticEvaluator, SyntheticSettings

SMALL = SyntheticSettings(advertisers=3)


@pytest.mark.parametrize("level", [SHORT, FULL])
@pytest.mark.parametrize("noise", [1.0, 0.4])
def test_means_are_the_truth(level, noise):
    which, pairs = np.array([0, 5, 13, 26]), 20_000
    evaluator = SyntheticEvaluator(SyntheticSettings(advertisers=3, noise=noise), 4)
    outcomes, _ = evaluator.sample(which, level, 0, pairs)
    error = outcomes.std(axis=1) / np.sqrt(pairs)
    apart = outcomes.mean(axis=1) - evaluator.level_truth(level)[which]
    assert (np.abs(apart) <= 4.5 * error + 1e-15).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(0, 1),
    st.integers(0, 30),
    st.integers(1, 9),
    st.lists(st.integers(0, 26), min_size=1, max_size=4, unique=True),
)
def test_a_sample_is_a_function_of_what_is_asked_for(seed, level, start, pairs, which):
    evaluator = SyntheticEvaluator(SMALL, seed)
    outcomes, tokens = evaluator.sample(np.arange(27), level, 0, start + pairs)
    again, cost = SyntheticEvaluator(SMALL, seed).sample(
        np.array(which), level, start, start + pairs
    )
    assert (again == outcomes[which, start:]).all() and (cost == tokens[which, start:]).all()
    assert outcomes.min() >= 0 and outcomes.max() <= 1
    most = evaluator.levels[level].tokens
    assert tokens.min() >= most / 2 and tokens.max() <= most


def test_a_configuration_is_the_same_in_every_design():
    rough = SyntheticSettings(advertisers=3, roughness=0.3)
    whole = SyntheticEvaluator(rough, 2)
    part = SyntheticEvaluator(rough, 2, whole.configurations[[20, 3]])
    assert (part.truth() == whole.truth()[[20, 3]]).all()
    assert (
        part.sample(np.array([0, 1]), FULL, 0, 9)[0]
        == whole.sample(np.array([20, 3]), FULL, 0, 9)[0]
    ).all()


def test_other_pairs_of_the_same_problem():
    evaluator = SyntheticEvaluator(SMALL, 1)
    other = evaluator.reseeded(7)
    assert (other.truth() == evaluator.truth()).all()
    which = np.arange(27)
    assert (other.sample(which, FULL, 0, 5)[0] != evaluator.sample(which, FULL, 0, 5)[0]).any()


@pytest.mark.parametrize("seed", range(5))
def test_clicks_rise_with_the_own_strength_ever_less_and_fall_with_rivals(seed):
    settings = SyntheticSettings(advertisers=3, strengths=3)
    truth = SyntheticEvaluator(settings, seed).truth().reshape(4, 4, 4, 4)
    for i in range(3):
        ctr = np.moveaxis(truth[..., i], i, 0)  # own strength first
        rise = np.diff(ctr, axis=0)
        assert (ctr[0] == 0).all() and (rise > 0).all() and (np.diff(rise, axis=0) < 0).all()
        for rival in (1, 2):
            assert (np.diff(ctr[1:], axis=rival) < 0).all()
        loss = -np.diff(truth[..., 3], axis=i)
        assert (loss > 0).all() and (np.diff(loss, axis=i) > 0).all()
    assert truth[0, 0, 0, 3] == settings.satisfaction
    assert truth[3, 3, 3, 3] == pytest.approx(settings.satisfaction - settings.annoyance)


def test_without_noise_every_pair_is_the_truth_and_without_bias_levels_agree():
    evaluator = SyntheticEvaluator(SyntheticSettings(advertisers=3, noise=0, bias=0), 1)
    for level in (SHORT, FULL):
        outcomes, _ = evaluator.sample(np.arange(27), level, 0, 3)
        assert (outcomes == evaluator.truth()[:, None]).all()
        assert not evaluator.levels[level].biased
    assert SyntheticEvaluator(SMALL).levels[SHORT].biased


def test_bias_is_smooth_in_size():
    def bias(beta):
        evaluator = SyntheticEvaluator(SyntheticSettings(bias=beta), 3)
        return evaluator.level_truth(SHORT) - evaluator.truth()

    np.testing.assert_allclose(bias(0.4), 2 * bias(0.2), atol=1e-12)
    assert np.abs(bias(0.2)).max() > 0.02


def test_common_pairs_go_up_and_down_together():
    evaluator = SyntheticEvaluator(SMALL, 0)
    which = np.array([13, 14, 22])  # everybody is sponsored
    full = evaluator.sample(which, FULL, 0, 4000)[0] @ evaluator.weights
    short = evaluator.sample(which, SHORT, 0, 4000)[0] @ evaluator.weights
    between = np.corrcoef(full)
    assert between[np.triu_indices(3, 1)].min() > 0.3
    for s in range(3):
        assert np.corrcoef(full[s], short[s])[0, 1] > between[0, 1]
    apart = SyntheticSettings(advertisers=3, query_share=0, query_spread=0)
    alone = SyntheticEvaluator(apart, 0).sample(which, FULL, 0, 4000)[0] @ evaluator.weights
    assert np.abs(np.corrcoef(alone)[np.triu_indices(3, 1)]).max() < 0.06


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("noise", 1.1),
        ("bias", 0.6),
        ("annoyance", 0.9),
        ("short_tokens", 65),
        ("advertisers", 0),
        ("crowding", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(BadInput, match=f"synthetic.{setting} is"):
        SyntheticSettings(**{setting: value})


def test_too_many_configurations_are_refused():
    with pytest.raises(BadInput, match="fewer advertisers or strengths"):
        SyntheticSettings(advertisers=20)


@pytest.mark.parametrize("configurations", [[[0, 1]], [[0, 1, 3]], np.zeros((0, 3)), [[0, 0, -1]]])
def test_unfit_configurations_are_refused(configurations):
    with pytest.raises(BadInput, match="configurations"):
        SyntheticEvaluator(SMALL, 0, configurations)

"""Misreports gain no more than twice the optimisation error, and nobody pays beyond its value."""

import numpy as np
import pytest

from mechanisms.iamfm.counterfactual import settle
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget, weights_of
from mechanisms.iamfm.exact import exact_vcg, externalities
from mechanisms.iamfm.incentives import misreport_gain, optimisation_error, utilities
from mechanisms.iamfm.synthetic import SyntheticEvaluator, SyntheticSettings
from tests.mechanisms.iamfm.evenly import Evenly

METHOD = Evenly()


def mechanism(evaluator, how, pairs, tokens):
    """The whole mechanism at given bids: fresh samples, the same random numbers every time."""

    def run(bids):
        rng = np.random.default_rng(0)
        known = Evaluations(evaluator, TokenBudget(1e8))
        allowance = pairs * len(evaluator.configurations) * evaluator.levels[-1].tokens
        METHOD.search(known, weights_of(bids, 1.0), allowance, "allocation", rng)
        return settle(known, METHOD, bids, 1.0, tokens, rng, how)

    return run


def deviations(problems, how, rng):
    for problem in range(problems):
        settings = SyntheticSettings(
            advertisers=int(rng.integers(2, 4)),
            strengths=int(rng.integers(1, 3)),
            crowding=rng.uniform(0, 2),
            roughness=rng.choice([0.0, 0.5]),
        )
        evaluator = SyntheticEvaluator(settings, problem, pair_seed=problem)
        values, truth = evaluator.values, evaluator.truth()
        i = int(rng.integers(len(values)))
        report = values[i] * rng.choice([0.0, 0.5, 0.9, 1.1, 2.0, 10.0])
        run = mechanism(evaluator, how, int(rng.integers(2, 12)), 3 * 27 * 2 * 64)
        yield evaluator, run, truth, values, i, report


def bounded(problems, how, seed):
    gains = []
    for _, run, truth, values, i, report in deviations(problems, how, np.random.default_rng(seed)):
        found = misreport_gain(run, truth, values, 1.0, i, report)
        assert found.gain <= 2 * found.error + 1e-12
        gains.append(found.gain)
    assert max(gains) > 1e-5  # with errors, some misreports do gain


@pytest.mark.parametrize("how", ["aco", "naive", "none"])
def test_gain_is_at_most_twice_the_error(how):
    bounded(25, how, seed=0)


@pytest.mark.slow
def test_gain_is_at_most_twice_the_error_in_a_thousand_problems():
    bounded(1000, "aco", seed=1)


def test_without_error_there_is_no_gain():
    settings = SyntheticSettings(advertisers=3, noise=0.0)
    for seed in range(3):
        evaluator = SyntheticEvaluator(settings, seed)
        run = mechanism(evaluator, "aco", 2, 1e5)
        truth, values = evaluator.truth(), evaluator.values
        for factor in (0.0, 0.7, 1.5, 20.0):
            found = misreport_gain(run, truth, values, 1.0, seed, factor * values[seed])
            assert found.error < 1e-12 and found.gain < 1e-12


@pytest.mark.parametrize("how", ["aco", "naive", "none"])
def test_what_the_error_is_made_of(how):
    """Equations (1) and (4) of the module, and individual rationality."""
    for _, run, truth, values, _, _ in deviations(12, how, np.random.default_rng(2)):
        found = run(values)
        welfare = truth @ weights_of(values, 1.0)
        due = externalities(truth, values, 1.0, found.chosen)
        charges = found.charges(truth)
        utility = utilities(found, truth, values)
        without = [weights_of(values, 1.0, without=i) for i in range(len(values))]
        best = np.array([(truth @ w).max() for w in without])
        np.testing.assert_allclose(
            utility, welfare[found.chosen] - best - (charges - due), atol=1e-12
        )

        alpha = welfare.max() - welfare[found.chosen]
        at = np.array([truth[c] @ w for c, w in zip(found.counterfactual, without, strict=True)])
        gamma = best - at
        played = np.array([truth[found.chosen] @ w for w in without])
        believed = np.array([found.outcomes[found.chosen] @ w for w in without])
        eta = np.abs((found.others_best - believed) - (at - played))
        nu = np.abs(found.values - values * truth[found.chosen, :-1])
        bound = np.maximum(gamma + eta, alpha + nu) + nu
        assert (np.abs(charges - due) <= bound + 1e-12).all()
        error = optimisation_error(found, truth, 1.0)
        assert (error <= alpha + bound + 1e-12).all() and (error >= alpha).all()

        assert (charges <= values * truth[found.chosen, :-1]).all()
        assert (utility >= 0).all()


def test_the_error_of_vcg_is_none():
    evaluator = SyntheticEvaluator(SyntheticSettings(advertisers=4), 0)
    exact = exact_vcg(evaluator.truth(), evaluator.values, 1.0)
    assert optimisation_error(exact, evaluator.truth(), 1.0).max() < 1e-12
    worse = exact_vcg(evaluator.truth(), evaluator.values, 1.0, chosen=0)
    assert optimisation_error(worse, evaluator.truth(), 1.0).min() > 1e-3

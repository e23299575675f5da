"""The Gaussian process, and the two searches that go by it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm import gaussian_process, sampling_error, surrogate
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget, weights_of
from mechanisms.iamfm.surrogate import ModelBased, SingleFidelityGP
from mechanisms.iamfm.synthetic import FULL, SHORT, SyntheticEvaluator, SyntheticSettings
from tests.mechanisms.iamfm.tables import Permuted

METHODS = [ModelBased(), SingleFidelityGP()]
SMALL = SyntheticSettings(advertisers=3)
EXACT = SyntheticSettings(advertisers=3, noise=0.0)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def fresh(evaluator, limit=1e9):
    return Evaluations(evaluator, TokenBudget(limit))


def searched(evaluator, method, tokens, weights=None, seed=0, limit=1e9):
    known = fresh(evaluator, limit)
    weights = evaluator.weights if weights is None else weights
    method.search(known, weights, tokens, "allocation", np.random.default_rng(seed))
    return known


def test_mechanisms_do_not_load_torch_for_it():
    code = (
        "import sys, mechanisms.iamfm.surrogate; "
        "assert not {'torch', 'gpytorch', 'botorch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@every_method
@settings(max_examples=5, deadline=None)
@given(tokens=st.floats(1, 4000), limit=st.floats(1, 4000), seed=st.integers(0, 50))
def test_never_beyond_the_allowance_or_the_budget(method, tokens, limit, seed):
    known = searched(SyntheticEvaluator(SMALL, seed), method, tokens, seed=seed, limit=limit)
    assert known.budget.total <= min(tokens, limit) * (1 + 1e-12)
    assert set(known.budget.spent) <= {"allocation"}


@every_method
def test_spends_nearly_all_of_it(method):
    known = searched(SyntheticEvaluator(SMALL, 1), method, 3_000)
    assert known.budget.total > 3_000 - SMALL.tokens


def test_single_fidelity_is_single():
    assert searched(SyntheticEvaluator(SMALL), METHODS[1], 2_000).counts[SHORT].sum() == 0


@every_method
def test_the_same_seed_gives_the_same_bytes(method):
    found = []
    for _ in range(2):
        known = searched(SyntheticEvaluator(SMALL, 5), method, 2_000, seed=9)
        belief = method.belief(known)
        found.append(known.counts.tobytes() + belief.mean.tobytes() + belief.covariance.tobytes())
    assert found[0] == found[1]


@every_method
def test_finds_the_optimum_of_a_smooth_problem_without_noise(method):
    for seed in range(3):
        evaluator = SyntheticEvaluator(EXACT, seed)
        known = searched(evaluator, method, 2_000, seed=seed)
        assert (known.counts[FULL] > 0).sum() < len(evaluator.configurations)
        welfare = evaluator.truth() @ evaluator.weights
        regret = welfare.max() - welfare[method.choose(known, evaluator.weights)]
        assert regret < 0.02 * np.ptp(welfare)


def test_the_posterior_mean_interpolates_what_is_certain():
    evaluator = SyntheticEvaluator(EXACT, 3)
    known = fresh(evaluator)
    which = np.arange(0, 27, 2)
    known.extend(which, FULL, 2, "allocation")
    mean = ModelBased().belief(known).mean
    truth = evaluator.truth()
    assert np.abs(mean - truth)[which].max() < 0.01 * np.ptp(truth, axis=0).max()


def test_cheap_samples_inform_the_unbiased_level():
    """The log-score of all true outcomes, with cheap samples and without."""
    gained = []
    for seed in range(4):
        evaluator = SyntheticEvaluator(SyntheticSettings(advertisers=4, noise=0.3), seed)
        which = np.random.default_rng(seed).permutation(81)
        score = []
        for method in (SingleFidelityGP(), ModelBased()):
            known = fresh(evaluator)
            known.extend(which[:8], FULL, 16, "allocation")
            known.extend(which[:48], SHORT, 16, "allocation")
            belief = method.belief(known)
            variance = np.diagonal(belief.covariance, axis1=1, axis2=2)
            surprise = (belief.mean - evaluator.truth()) ** 2 / variance + np.log(variance)
            score.append(-0.5 * surprise.mean())
        gained.append(score[1] - score[0])
    assert np.mean(gained) > 0


def test_everything_scales_with_the_weights():
    """Money has no unit: the same evaluations, the same choice."""
    evaluator = SyntheticEvaluator(SMALL, 2)
    method = ModelBased()
    one = searched(evaluator, method, 2_000)
    other = searched(evaluator, method, 2_000, weights=1024 * evaluator.weights)
    assert (one.counts == other.counts).all()
    weights = evaluator.weights
    assert method.choose(one, weights) == method.choose(other, 1024 * weights)


def test_advertisers_have_no_names():
    evaluator = SyntheticEvaluator(SMALL, 4)
    order = np.array([2, 0, 1])
    beliefs = []
    for each in (evaluator, Permuted(evaluator, order)):
        known = fresh(each)
        known.extend(np.arange(0, 27, 2), SHORT, 8, "allocation")
        known.extend(np.arange(0, 27, 5), FULL, 8, "allocation")
        beliefs.append(ModelBased().belief(known))
    assert np.allclose(beliefs[0].mean[:, [2, 0, 1, 3]], beliefs[1].mean, atol=1e-4)


def test_what_is_known_is_used_for_other_weights():
    """A second search starts from the samples of the first: no new design, better than nothing."""
    evaluator = SyntheticEvaluator(SMALL, 6)
    method = ModelBased()
    known = searched(evaluator, method, 3_000)
    before = known.counts.copy()
    without = weights_of(evaluator.values, 1.0, without=0)
    method.search(known, without, 500, "payments", np.random.default_rng(1))
    assert (known.counts >= before).all() and 0 < known.budget.spent["payments"] <= 500
    assert ((known.counts > 0).any(axis=0) & (before == 0).all(axis=0)).sum() <= 4


def test_among():
    known = fresh(SyntheticEvaluator(SMALL, 6))
    among = np.array([3, 4, 20, 26])
    weights = known.evaluator.weights
    ModelBased().search(known, weights, 2_000, "allocation", np.random.default_rng(0), among)
    assert set(np.flatnonzero(known.counts.any(axis=0))) <= set(among)


def test_sampled_configurations_of_many_advertisers():
    n, rng = 12, np.random.default_rng(0)
    configurations = np.unique(rng.integers(0, 3, (100, n)), axis=0)
    evaluator = SyntheticEvaluator(SyntheticSettings(advertisers=n), 0, configurations)
    method = ModelBased(evaluations=20)
    known = searched(evaluator, method, 8_000)
    belief = method.belief(known)
    assert np.isfinite(belief.mean).all() and np.isfinite(belief.covariance).all()
    welfare = evaluator.truth() @ evaluator.weights
    assert welfare[method.choose(known, evaluator.weights)] > np.median(welfare)


@every_method
def test_nothing_known(method):
    known = fresh(SyntheticEvaluator(SMALL))
    belief = method.belief(known)
    assert np.isnan(belief.mean).all()
    assert np.isinf(np.diagonal(belief.covariance, axis1=1, axis2=2)).all()
    with pytest.raises(BadInput, match="no configuration has been evaluated"):
        method.choose(known, known.evaluator.weights)


@pytest.mark.parametrize(
    "wrong",
    [{"design": 0.0}, {"pairs": 1}, {"refit": 1.0}, {"evaluations": 0}, {"shortlist": 1}],
    ids=str,
)
def test_wrong_parameters(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        ModelBased(**wrong)


def test_a_failed_fit_is_told_of_once_and_keeps_the_last_hyperparameters(monkeypatch):
    known = fresh(SyntheticEvaluator(SMALL))
    known.extend(np.arange(10), SHORT, 4, "allocation")
    method = ModelBased()
    method.belief(known)
    before = surrogate._fitted(known, [SHORT, FULL], method.refit).process.logs

    def fail(*_):
        raise gaussian_process.FitFailed("on purpose")

    monkeypatch.setattr(gaussian_process, "fit", fail)
    known.extend(np.arange(20), SHORT, 8, "allocation")
    with pytest.warns(RuntimeWarning, match="last hyperparameters stand: on purpose") as told:
        belief = method.belief(known)
        known.extend(np.arange(20), SHORT, 64, "allocation")
        method.belief(known)
    assert len(told) == 1 and np.isfinite(belief.mean).all()
    assert (surrogate._fitted(known, [SHORT, FULL], method.refit).process.logs == before).all()


def test_a_likelihood_that_is_no_number_is_a_failed_fit():
    known = fresh(SyntheticEvaluator(SMALL))
    known.extend(np.arange(10), FULL, 4, "allocation")
    fitted = surrogate._fitted(known, [FULL], 1.5)
    data = fitted.process.data
    spoilt = replace(data, values=np.full_like(data.values, np.nan))
    with pytest.raises(gaussian_process.FitFailed):
        gaussian_process.fit(spoilt, fitted.process.prior)


def test_a_covariance_that_is_none_is_a_failed_fit():
    """It is not mended by adding to its diagonal."""
    known = fresh(SyntheticEvaluator(SMALL))
    known.extend(np.arange(10), FULL, 4, "allocation")
    process = surrogate._fitted(known, [FULL], 1.5).process
    data = process.data
    error = sampling_error.SamplingError(data.error.spread, data.error.common, -9 * data.error.own)
    spread = np.full_like(data.points.spread, 9.0)
    points = replace(data.points, spread=spread)
    spoilt = replace(data, points=points, error=error)
    with pytest.raises(gaussian_process.FitFailed):
        gaussian_process.fit(spoilt, process.prior)
    with pytest.raises(gaussian_process.FitFailed):
        gaussian_process.Process.given(spoilt, process.prior, process.logs)


def documented(process, one, other):
    """(K, N, M) prior covariance, entry by entry as the module's docstring has it."""
    data, biased = process.data, process.prior.biased
    n, L = one.strengths.shape[1], len(biased)
    found = np.zeros((n + 1, len(one.which), len(other.which)))
    for k, i, j in np.ndindex(found.shape):
        a_o, a_r, a_b, l_o, l_t, l_r, *by_level = np.exp(process.logs[int(k == n)])
        apart = (one.strengths[i] - other.strengths[j]) / one.strongest
        level, there = one.levels[i], other.levels[j]
        rivals = apart[np.arange(n) != k]
        k_o = np.exp(-(apart[k] ** 2) / (2 * l_o**2)) if k < n else 1.0
        total, distance = rivals.sum() ** 2 / n, (rivals**2).sum() / n
        k_r = np.exp(-total / (2 * l_t**2) - distance / (2 * l_r**2))
        rho, omega = by_level[:L], by_level[L:]
        shared = np.prod([rho[each] if biased[each] else 1.0 for each in (level, there)])
        itself = level == there and biased[level]
        c = 1 + a_o * k_o + a_r * k_r + a_b * k_o * k_r
        same = one.which[i] == other.which[j]
        share = data.error.common[k, level, there] + same * data.error.own[k, level, there]
        spread = one.spread[k, i] * other.spread[k, j] / data.scale[k] ** 2
        error = spread * share * min(one.times[i], other.times[j])
        found[k, i, j] = c * (shared + itself * omega[level]) + itself + error
    return found


def test_the_posterior_is_that_of_the_textbook():
    """Means, variances and covariances from one big Gaussian over data and points."""
    known = fresh(SyntheticEvaluator(SMALL, 1))
    known.extend(np.arange(0, 27, 3), SHORT, 4, "allocation")
    known.extend(np.arange(0, 27, 4), FULL, 8, "allocation")
    fitted = surrogate._fitted(known, [SHORT, FULL], 1.5)
    process, data = fitted.process, fitted.process.data
    which = np.array([1, 5, 9, 9])
    points = fitted.points(which, np.array([0, 1, 1, 1]), np.array([2.0, 4.0, 16.0, np.inf]))

    K = documented(process, data.points, data.points)
    K += gaussian_process.JITTER * np.eye(len(data.points.which))
    cross, scale = documented(process, data.points, points), data.scale[:, None]
    weights = np.linalg.solve(K, cross)
    covariance = documented(process, points, points) - cross.swapaxes(1, 2) @ weights
    covariance *= scale[:, None] ** 2
    own = np.vstack([points.strengths.T, np.zeros(4, int)])
    expected = data.expected[np.arange(4)[:, None], points.levels, own]
    mean = np.einsum("knm,kn->km", weights, data.values) * scale + expected
    found = process.believed(points)
    assert np.allclose(found[0], mean, rtol=0, atol=1e-9)
    assert np.allclose(found[1], np.diagonal(covariance, axis1=1, axis2=2), rtol=0, atol=1e-9)
    both = process.covariances(points, points)
    assert np.allclose(both[0], covariance, rtol=0, atol=1e-9) and np.allclose(both[1], found[1])
    library = process(points.tensor(2))  # GPyTorch's own, of all points jointly
    theirs = library.mean.detach().numpy() * scale + expected
    assert np.allclose(theirs, mean, rtol=0, atol=1e-9)
    theirs = library.covariance_matrix.detach().numpy() * scale[:, None] ** 2
    assert np.allclose(theirs, covariance, rtol=0, atol=1e-9)


def test_an_ad_is_expected_to_be_like_others_of_its_strength():
    """Means over all pairs of a level in which an ad has the strength, counted here one by one."""
    known = fresh(SyntheticEvaluator(SMALL, 1))
    known.extend(np.arange(0, 27, 3), SHORT, 4, "allocation")
    known.extend(np.arange(9), FULL, 8, "allocation")  # the first ad at strength 0 only
    expected = surrogate._fitted(known, [SHORT, FULL], 1.5).process.data.expected
    for level, which, pairs in ((SHORT, np.arange(0, 27, 3), 4), (FULL, np.arange(9), 8)):
        outcomes = known.outcomes(level, which, pairs)
        strengths = known.evaluator.configurations[which]
        for g in range(3):
            seen = outcomes[:, :, :3].transpose(0, 2, 1)[strengths == g]
            assert expected[:3, level, g] == pytest.approx(np.full(3, seen.mean()))
        assert expected[3, level] == pytest.approx(np.full(3, outcomes[:, :, 3].mean()))


def test_rare_clicks_are_not_drowned_by_what_every_pair_shows():
    """Ads pay, but few pairs show one; users mind each a little, and every pair tells."""
    n = 12
    strengths = np.unique(np.random.default_rng(0).integers(0, 3, (60, n)), axis=0)
    truth = np.column_stack([0.01 * strengths, 0.8 - 0.01 * strengths.sum(axis=1)])
    weights = weights_of(np.full(n, 4.0), 1.0)

    class Rare:
        configurations, levels = strengths, SyntheticEvaluator(SMALL).levels

        def __init__(self, seed):
            self.seed = seed

        def sample(self, which, level, start, stop):
            dice = np.random.default_rng(self.seed).random((len(strengths), 500, n))
            shown = dice[which, start:stop] < 0.02 * strengths[which][:, None]
            users = np.broadcast_to(truth[which, None, n:], (*shown.shape[:2], 1))
            return np.concatenate([0.5 * shown, users], axis=2), np.ones(shown.shape[:2])

    for seed in range(3):
        known = fresh(Rare(seed))
        known.extend(np.arange(16), FULL, 4, "allocation")
        welfare, _ = SingleFidelityGP().belief(known).welfare(weights)
        assert np.corrcoef(welfare, truth @ weights)[0, 1] > 0  # with one mean for all: -1


def test_expected_excess_in_logarithms():
    x = np.array([0.0, 0.5, 2.0, 6.0])
    z, dz = np.linspace(-12, 12, 400_001, retstep=True)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    expected = [(np.maximum(z - each, 0) * density).sum() * dz for each in x]
    assert np.allclose(np.exp(surrogate._log_expected_excess(x)), expected, rtol=1e-5)
    around = surrogate._log_expected_excess(np.array([30 - 1e-9, 30 + 1e-9]))
    assert around[0] == pytest.approx(around[1], abs=1e-4)
    assert surrogate._log_expected_excess(np.array([np.inf]))[0] == -np.inf


def test_sampling_errors_are_told_from_queries_that_all_share():
    """Deviations of known correlations, drawn here: found again."""
    rng = np.random.default_rng(0)
    S, P, share = 40, 400, 0.3
    strengths = np.column_stack([np.repeat([0, 1], S // 2), np.tile([0, 1], S // 2)])
    query = rng.standard_normal((1, P, 3))
    reply = rng.standard_normal((S, P, 3))
    spread = np.column_stack([0.1 * strengths, np.full(S, 0.2)])[:, None]
    noise = spread * (np.sqrt(share) * query + np.sqrt(1 - share) * reply)

    class Drawn:
        configurations = strengths
        levels = SyntheticEvaluator(SMALL).levels

        def sample(self, which, level, start, stop):
            return 0.5 + noise[which, start:stop], np.ones((len(which), stop - start))

    known = fresh(Drawn())
    known.extend(np.arange(S), FULL, P, "allocation")
    found = sampling_error.estimate(known, [FULL])
    assert found.spread[:2, FULL] == pytest.approx(np.tile([0.0, 0.1], (2, 1)), abs=0.01)
    assert found.spread[2, FULL] == pytest.approx([0.2, 0.2], abs=0.01)
    assert found.common[:, FULL, FULL] == pytest.approx(np.full(3, share), abs=0.06)
    assert found.own[:, FULL, FULL] + found.common[:, FULL, FULL] == pytest.approx(np.ones(3))
    assert not found.spread[:, SHORT].any()

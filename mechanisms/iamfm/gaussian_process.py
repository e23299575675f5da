"""A Gaussian process over configurations, levels and numbers of pairs.

What one sees of outcome k of configuration s at level l in m pairs is a point of the process

    g_k(s, l, m) = f_k(s, l) + ε_k(s, l, m),

whose sampling error ε is Brownian in 1/m (`mechanisms.iamfm.sampling_error`); f is at m = ∞. So the
whole fidelity z = (l, m) is an input, and thin samples, cheap ones and common queries weigh what
they are worth. Levels are coregionalised (Kennedy & O'Hagan 2000; Swersky, Snoek & Adams 2013):

    Cov(f(s, l), f(s', l')) = c(s, s')·(ρ_l·ρ_l' + 1{l = l'}·ω_l) + 1{l = l', biased},

with ρ = 1, ω = 0 at levels that are not biased; the last term is an offset that is left free.
Over configurations main effects and their interaction,

    c = 1 + a_o·k_o + a_r·k_r + a_b·k_o·k_r,
    k_o = exp(−Δ_own²/2ℓ_o²),      k_r = exp(−Δ_total²/2ℓ_t² − |Δ_rivals|²/2ℓ_r²),

where an ad's click rate sees its own strength, those of its rivals, and the rivals' total: ads
compete for places. User satisfaction has no strength of its own and all for rivals. Strengths are
ordinal, so distances are of their numbers, scaled to [0, 1] (total and rivals: by √n besides).

Given hyperparameters, outcomes are independent, so the posterior covariance is diagonal in k. All
click rates share their hyperparameters, for nothing tells advertisers apart before they are seen;
user satisfaction has its own. They are found by maximising posterior density (log-normal priors,
L-BFGS, gradients by torch). Outcomes are standardised by the data, so their scale does not matter.

Everything is float64, on the CPU, and draws no random number.

Shapes: outcomes K = n + 1, data N, points M, levels L, hyperparameters H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from mechanisms.iamfm.sampling_error import SamplingError
from mechanisms.pool import Floats, Ints

Tensor = torch.Tensor

JITTER = 1e-6
"""Variance added to every observation, in units of an outcome's own variance over the data."""
ITERATIONS, FITTED_ROWS = 40, 150
CLICKS, USER = 0, 1
_SHARED = 6
_MEDIANS = (0.5, 0.3, 0.2, 1.0, 1.0, 2.0)  # a_o, a_r, a_b, ℓ_o, ℓ_t, ℓ_r
_SPREADS = (1.0, 1.0, 1.0, 0.7, 0.7, 0.7)
_BY_LEVEL = ((1.0, 0.3), (0.05, 1.0))  # ρ and ω: median, and standard deviation of the log


class FitFailed(RuntimeError):
    """No hyperparameters were found: the likelihood could not be computed."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points of the process.

    Attributes:
        which: (M,) numbers of configurations.
        strengths: (M, n) theirs, scaled to [0, 1].
        levels: (M,).
        times: (M,) 1/m, and 0 for the expected outcome.
        spread: (K, M) standard deviation of an outcome on one pair.
    """

    which: Ints
    strengths: Floats
    levels: Ints
    times: Floats
    spread: Floats

    def part(self, rows: Ints) -> Points:
        """Those points."""
        return Points(
            self.which[rows],
            self.strengths[rows],
            self.levels[rows],
            self.times[rows],
            self.spread[:, rows],
        )


class _Gaps(NamedTuple):
    """What the covariance of two sets of points is made of, hyperparameters apart.

    Squared distances and error covariance, (K, N, M) each, and levels (N,), (M,).
    """

    own: Tensor
    total: Tensor
    rivals: Tensor
    error: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Prior:
    """Where hyperparameters are looked for.

    They are logarithms in (2, H), of clicks and of user satisfaction: a_o, a_r, a_b, ℓ_o, ℓ_t, ℓ_r,
    then ρ and ω of each level.

    Attributes:
        biased: (L,) levels.
    """

    biased: tuple[bool, ...]

    @property
    def moments(self) -> tuple[Floats, Floats]:
        """Means and standard deviations (2, H) of the logarithms."""
        L = len(self.biased)
        medians = [*_MEDIANS, *[_BY_LEVEL[0][0]] * L, *[_BY_LEVEL[1][0]] * L]
        spreads = [*_SPREADS, *[_BY_LEVEL[0][1]] * L, *[_BY_LEVEL[1][1]] * L]
        return np.tile(np.log(medians), (2, 1)), np.tile(spreads, (2, 1))


@dataclass(frozen=True, eq=False)
class Data:
    """Sample means, standardised.

    Attributes:
        points: N of them.
        values: (K, N).
        error: of pairs, in the outcomes' own units.
        centre: (K,) what was subtracted.
        scale: (K,) by what was divided.
    """

    points: Points
    values: Floats
    error: SamplingError
    centre: Floats
    scale: Floats

    @classmethod
    def of(cls, points: Points, means: Floats, error: SamplingError) -> Data:
        """Those of means (N, K) at points, each weighing as many pairs as it is of."""
        weights = 1 / points.times
        centre = np.average(means, axis=0, weights=weights)
        scale = np.sqrt(np.average((means - centre) ** 2, axis=0, weights=weights))
        varies = scale > 1e-12
        # what never varied (an ad that nobody clicked) is taken to vary as others do
        scale[~varies] = scale[varies].mean() if varies.any() else 1.0
        return cls(points, ((means - centre) / scale).T, error, centre, scale)


def fit(data: Data, prior: Prior, start: Floats | None = None) -> Floats:
    """Hyperparameters (2, H) of highest posterior density.

    Args:
        data: of more than `FITTED_ROWS` points, that many in even steps are looked at.
        prior: of hyperparameters.
        start: where to begin; default the prior's means.

    Raises:
        FitFailed: the density is not a number, or its matrix has no Cholesky factor.
    """
    mean, spread = prior.moments
    N = len(data.points.which)
    rows = np.unique(np.linspace(0, N - 1, min(N, FITTED_ROWS)).astype(np.int64))
    points, values = data.points.part(rows), torch.from_numpy(data.values[:, rows])
    gaps = _gaps(points, points, data)
    centre, width = torch.from_numpy(mean), torch.from_numpy(spread)

    def loss(at: Floats) -> tuple[float, Floats]:
        logs = torch.from_numpy(at.reshape(mean.shape)).requires_grad_()
        covariance = _with_jitter(_covariance(logs, prior, gaps))
        log_density = (
            _log_density(values, covariance) - 0.5 * ((logs - centre) / width).square().sum()
        )
        (-log_density).backward()
        return -log_density.item(), logs.grad.numpy().ravel()

    begin = np.asarray(mean if start is None else start, dtype=np.float64)
    far = 5 * spread.ravel()
    bounds = np.column_stack([mean.ravel() - far, mean.ravel() + far])
    try:
        found = minimize(
            loss,
            np.clip(begin.ravel(), *bounds.T),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": ITERATIONS},
        )
    except torch.linalg.LinAlgError as error:
        raise FitFailed(f"no Cholesky factor: {error}") from error
    if not (np.isfinite(found.fun) and np.isfinite(found.x).all()):
        raise FitFailed(f"the log-density is {-found.fun}")
    return found.x.reshape(mean.shape)


@dataclass(frozen=True, eq=False)
class Process:
    """The process given data and hyperparameters.

    Attributes:
        data: given.
        prior: of the hyperparameters.
        logs: (2, H) hyperparameters.
    """

    data: Data
    prior: Prior
    logs: Tensor
    _factor: Tensor  # (K, N, N) Cholesky's of the data's covariance
    _solved: Tensor  # (K, N, 1) its inverse, applied to the values

    @classmethod
    def given(cls, data: Data, prior: Prior, logs: Floats) -> Process:
        """Condition on data."""
        at = torch.from_numpy(np.asarray(logs))
        covariance = _covariance(at, prior, _gaps(data.points, data.points, data))
        factor = torch.linalg.cholesky(_with_jitter(covariance))
        solved = torch.cholesky_solve(torch.from_numpy(data.values)[:, :, None], factor)
        return cls(data, prior, at, factor, solved)

    def believed(self, points: Points) -> tuple[Floats, Floats]:
        """Posterior means and variances (K, M) at points."""
        mean, root = self._project(points)
        variance = (self._variance(points) - root.square().sum(1)).clamp(min=0.0)
        return self._unscaled(mean.numpy()), variance.numpy() * self.data.scale[:, None] ** 2

    def covariances(self, points: Points, others: Points) -> tuple[Floats, Floats]:
        """Posterior covariances (K, M, M') of points with others, and variances (K, M') there."""
        _, root = self._project(points)
        _, root_there = self._project(others)
        prior = _covariance(self.logs, self.prior, _gaps(points, others, self.data))
        covariance = prior - root.mT @ root_there
        variance = (self._variance(others) - root_there.square().sum(1)).clamp(min=0.0)
        square = self.data.scale[:, None] ** 2
        return covariance.numpy() * square[:, :, None], variance.numpy() * square

    def _project(self, points: Points) -> tuple[Tensor, Tensor]:
        """Posterior means (K, M), standardised, and L⁻¹·Cov(data, points) (K, N, M)."""
        cross = _covariance(self.logs, self.prior, _gaps(self.data.points, points, self.data))
        mean = (cross.mT @ self._solved)[:, :, 0]
        return mean, torch.linalg.solve_triangular(self._factor, cross, upper=False)

    def _variance(self, points: Points) -> Tensor:
        """(K, M) prior variances."""
        logs, levels = self.logs, torch.from_numpy(points.levels)
        amplitude = 1 + logs[:, :3].exp().sum(1)
        shared = torch.diagonal(_levels(logs, self.prior), dim1=1, dim2=2)[:, levels]
        biased = torch.tensor(self.prior.biased, dtype=torch.float64)[levels]
        by_group = amplitude[:, None] * shared + biased
        return by_group[_groups(len(self.data.scale))] + torch.from_numpy(
            _error_variance(points, self.data)
        )

    def _unscaled(self, values: Floats) -> Floats:
        return values * self.data.scale[:, None] + self.data.centre[:, None]


def _groups(K: int) -> Tensor:
    """(K,) whose hyperparameters an outcome has."""
    return torch.tensor([CLICKS] * (K - 1) + [USER])


def _levels(logs: Tensor, prior: Prior) -> Tensor:
    """(2, L, L) covariance between levels."""
    L = len(prior.biased)
    biased = torch.tensor(prior.biased, dtype=torch.float64)
    rho = (logs[:, _SHARED : _SHARED + L] * biased).exp()
    omega = logs[:, _SHARED + L :].exp() * biased
    return rho[:, :, None] * rho[:, None, :] + torch.diag_embed(omega)


def _covariance(logs: Tensor, prior: Prior, gaps: _Gaps) -> Tensor:
    """(K, N, M) of standardised outcomes, errors included."""
    group = _groups(len(gaps.own))
    amplitude = logs[group, :3].exp()[:, :, None, None]
    inverse = (-2 * logs[group, 3:_SHARED]).exp()[:, :, None, None] / 2
    own = (-gaps.own * inverse[:, 0]).exp()
    rivals = (-gaps.total * inverse[:, 1] - gaps.rivals * inverse[:, 2]).exp()
    effects = 1 + amplitude[:, 0] * own + amplitude[:, 1] * rivals + amplitude[:, 2] * own * rivals
    shared = _levels(logs, prior)[group][:, gaps.first][:, :, gaps.second]
    biased = torch.tensor(prior.biased, dtype=torch.float64)[gaps.first]
    offset = biased[:, None] * (gaps.first[:, None] == gaps.second)
    return effects * shared + offset + gaps.error


def _gaps(first: Points, second: Points, data: Data) -> _Gaps:
    n = first.strengths.shape[1]
    x, y = first.strengths, second.strengths
    own = np.zeros((n + 1, len(x), len(y)))
    own[:n] = (x.T[:, :, None] - y.T[:, None, :]) ** 2
    distance = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    # of rivals: without one's own; of users: of all
    left = np.vstack([x.sum(axis=1) - x.T, x.sum(axis=1)])
    right = np.vstack([y.sum(axis=1) - y.T, y.sum(axis=1)])
    total = (left[:, :, None] - right[:, None, :]) ** 2 / n
    arrays = own, total, (distance - own) / n, _error(first, second, data)
    return _Gaps(
        *(torch.from_numpy(each) for each in arrays),
        torch.from_numpy(first.levels),
        torch.from_numpy(second.levels),
    )


def _error(first: Points, second: Points, data: Data) -> Floats:
    """(K, N, M) covariance of sampling errors, standardised."""
    error, at = data.error, np.ix_(np.arange(len(data.scale)), first.levels, second.levels)
    same = np.equal.outer(first.which, second.which)
    correlation = error.common[at] + same * error.own[at]
    left, right = (points.spread / data.scale[:, None] for points in (first, second))
    shared = np.minimum.outer(first.times, second.times)
    return left[:, :, None] * right[:, None, :] * correlation * shared


def _error_variance(points: Points, data: Data) -> Floats:
    """(K, M) of sampling errors, standardised."""
    levels = points.levels
    share = data.error.common[:, levels, levels] + data.error.own[:, levels, levels]
    return (points.spread / data.scale[:, None]) ** 2 * share * points.times


def _with_jitter(covariance: Tensor) -> Tensor:
    return covariance + JITTER * torch.eye(covariance.shape[-1], dtype=torch.float64)


def _log_density(values: Tensor, covariance: Tensor) -> Tensor:
    """Of all values (K, N), up to a constant."""
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, values[:, :, None], upper=False)
    return -0.5 * white.square().sum() - torch.diagonal(factor, dim1=1, dim2=2).log().sum()

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
user satisfaction has its own. They are found by maximising posterior density (log-normal priors;
BoTorch's L-BFGS). The process is of outcomes less what is expected of ads of their strength, and
standardised by the data (`mechanisms.iamfm.process_data`), so their scale does not matter.

The process is GPyTorch's, a batch of K. Everything is float64, on the CPU, draws no random number
and is exact: where GPyTorch would approximate or add to a diagonal, `FitFailed` is raised.

Shapes: outcomes K = n + 1, data N, points M, levels L, hyperparameters H, a point's numbers D.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from botorch.optim.closures import ForwardBackwardClosure
from botorch.optim.core import scipy_minimize
from gpytorch import settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.models import ExactGP
from gpytorch.priors import NormalPrior
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning

from mechanisms.iamfm.process_data import Data, Points
from mechanisms.pool import Floats, Ints

Tensor = torch.Tensor

JITTER = 1e-6
"""Variance added to every observation, in units of an outcome's own variance over the data."""
ITERATIONS, FITTED_ROWS = 40, 150
_SHARED = 6
_MEDIANS = (0.5, 0.3, 0.2, 1.0, 1.0, 2.0)  # a_o, a_r, a_b, ℓ_o, ℓ_t, ℓ_r
_SPREADS = (1.0, 1.0, 1.0, 0.7, 0.7, 0.7)
_BY_LEVEL = ((1.0, 0.3), (0.05, 1.0))  # ρ and ω: median, and standard deviation of the log


class FitFailed(RuntimeError):
    """A covariance has no Cholesky factor, or the density is not a number."""


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


class Covariance(Kernel):
    """That of standardised outcomes at points (see `Points.tensor`), sampling errors included.

    Args:
        data: whose sampling error is a known part.
        prior: of the hyperparameters.
        logs: (2, H) hyperparameters.
    """

    def __init__(self, data: Data, prior: Prior, logs: Floats):
        K = len(data.scale)
        super().__init__(batch_shape=torch.Size([K]))
        self.register_parameter("logs", torch.nn.Parameter(torch.tensor(logs)))
        self.register_prior("prior", NormalPrior(*map(torch.from_numpy, prior.moments)), "logs")
        self._group = torch.tensor([0] * (K - 1) + [1])  # the last is the users'
        self._biased = torch.tensor(prior.biased, dtype=torch.float64)
        shares = (data.error.common, data.error.own)
        square = data.scale[:, None, None] ** 2
        self._common, self._alone = (torch.from_numpy(share / square) for share in shares)
        self._kept: tuple[Tensor, ...] | None = None

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        """(K, N, M), or its diagonal (K, N)."""
        fixed = (self.training and self._kept) or self._fixed(x1, x2, diag)
        if self.training:  # a fit asks for the same points again and again
            self._kept = fixed
        own, total, rivals, known, level, level_2 = fixed
        logs = self.logs[self._group].reshape(len(self._group), -1, *[1] * (own.ndim - 1))
        a_o, a_r, a_b = logs[:, :3].exp().unbind(1)
        by_o, by_t, by_r = (-(-2 * logs[:, 3:_SHARED]).exp() / 2).unbind(1)
        k_o, k_r = (own * by_o).exp(), (total * by_t + rivals * by_r).exp()
        effects = 1 + a_o * k_o + k_r * (a_r + a_b * k_o)
        return effects * _between(level, self._levels()[self._group], level_2, diag) + known

    def _levels(self) -> Tensor:
        """(2, L, L) covariance between levels."""
        L = len(self._biased)
        rho = (self.logs[:, _SHARED : _SHARED + L] * self._biased).exp()
        omega = self.logs[:, _SHARED + L :].exp() * self._biased
        return rho[:, :, None] * rho[:, None, :] + torch.diag_embed(omega)

    def _fixed(self, x1: Tensor, x2: Tensor, diag: bool) -> tuple[Tensor, ...]:
        """What hyperparameters do not change.

        Squared distances of own strengths, rivals' totals and rivals', the offset and the sampling
        error together, and the levels of both.
        """
        L = len(self._biased)
        sizes = [4, x1.shape[-1] - 4 - 2 * L, L, L]
        first, rivals, spread, level = x1.split(sizes, dim=-1)
        second, rivals_2, spread_2, level_2 = x2.split(sizes, dim=-1)
        if not diag:
            first, second = first[..., :, None, :], second[..., None, :, :]
        own, total = (first[..., :2] - second[..., :2]).square().unbind(-1)
        rivals = self.covar_dist(rivals, rivals_2, diag=diag, square_dist=True)
        same = first[..., 2] == second[..., 2]
        error = _between(spread, self._common, spread_2, diag)
        error = error + same * _between(spread, self._alone, spread_2, diag)
        known = _between(level, self._biased.diag(), level_2, diag)
        known = known + error * torch.minimum(first[..., 3], second[..., 3])
        return own, total, rivals, known, level, level_2


class Process(ExactGP):
    """The process given data and hyperparameters.

    Args:
        data: given.
        prior: of the hyperparameters.
        logs: (2, H) hyperparameters.
        rows: of the data that are looked at; default all.
    """

    def __init__(self, data: Data, prior: Prior, logs: Floats, rows: Ints | slice = slice(None)):
        values = torch.from_numpy(data.values)[:, rows]
        noise = FixedNoiseGaussianLikelihood(torch.full_like(values, JITTER))
        super().__init__(data.points.tensor(len(prior.biased))[:, rows], values, noise)
        self.data, self.prior = data, prior
        self.kernel = Covariance(data, prior, logs)

    @classmethod
    def given(cls, data: Data, prior: Prior, logs: Floats) -> Process:
        """Condition on data.

        Raises:
            FitFailed: that cannot be done.
        """
        process = cls(data, prior, logs).eval()
        with _exactly(), torch.no_grad():
            inputs, values = process.train_inputs, process.train_targets
            kept = process.kernel.prediction_strategy(
                inputs, process.forward(*inputs), values, process.likelihood
            )
            process.prediction_strategy = kept
            _ = kept.mean_cache, kept.covar_cache  # solved here, by Cholesky
        return process

    @property
    def logs(self) -> Floats:
        """(2, H) hyperparameters."""
        return self.kernel.logs.detach().numpy().copy()

    def forward(self, points: Tensor) -> MultivariateNormal:
        """The process before data, at points (K, M, D)."""
        return MultivariateNormal(torch.zeros_like(points[..., 0]), self.kernel(points))

    @torch.no_grad()
    def believed(self, points: Points) -> tuple[Floats, Floats]:
        """Posterior means and variances (K, M) at points."""
        there = self._tensor(points)
        mean, root = self._project(there)
        return self.data.unscaled(mean.numpy(), points), self._variance(there, root)

    @torch.no_grad()
    def covariances(self, points: Points, others: Points) -> tuple[Floats, Floats]:
        """Posterior covariances (K, M, M') of points with others, and variances (K, M') there."""
        here, there = self._tensor(points), self._tensor(others)
        root, root_there = self._project(here)[1], self._project(there)[1]
        covariance = self.kernel(here, there).to_dense() - root @ root_there.mT
        square = self.data.scale[:, None, None] ** 2
        return covariance.numpy() * square, self._variance(there, root_there)

    def _project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means (K, M), standardised, and (K, M, N) what data explain of covariances.

        By what GPyTorch keeps of the data; its posterior itself is of all points jointly, which is
        many times the work.
        """
        cross = self.kernel(points, self.train_inputs[0]).to_dense()
        kept = self.prediction_strategy
        return (cross @ kept.mean_cache[:, :, None])[:, :, 0], cross @ kept.covar_cache

    def _variance(self, points: Tensor, root: Tensor) -> Floats:
        """(K, M) posterior variances."""
        variance = self.kernel(points, diag=True) - root.square().sum(-1)
        return variance.clamp(min=0.0).numpy() * self.data.scale[:, None] ** 2

    def _tensor(self, points: Points) -> Tensor:
        return points.tensor(len(self.prior.biased))


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
    low, high = mean - 5 * spread, mean + 5 * spread
    N = len(data.points.which)
    rows = np.unique(np.linspace(0, N - 1, min(N, FITTED_ROWS)).astype(np.int64))
    process = Process(data, prior, np.clip(mean if start is None else start, low, high), rows)

    def loss() -> Tensor:
        """GPyTorch's own would count the prior once for each outcome."""
        seen = process.likelihood(process(*process.train_inputs))
        density = seen.log_prob(process.train_targets).sum()
        return -density - process.kernel.prior.log_prob(process.kernel.logs).sum()

    parameters = {"logs": process.kernel.logs}
    with _exactly():
        found = scipy_minimize(
            ForwardBackwardClosure(loss, parameters),
            parameters,
            bounds={"logs": (torch.from_numpy(low).ravel(), torch.from_numpy(high).ravel())},
            options={"maxiter": ITERATIONS},
        )
    if not (np.isfinite(found.fval) and np.isfinite(process.logs).all()):
        raise FitFailed(f"the log-density is {-found.fval}")
    return process.logs


@contextmanager
def _exactly() -> Iterator[None]:
    """GPyTorch by Cholesky factors only; what it would mend with a warning is a `FitFailed`."""
    with settings.fast_computations(False, False, False), warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        try:
            yield
        except (NanError, NotPSDError, NumericalWarning) as error:
            raise FitFailed(f"no Cholesky factor: {error}") from error


def _between(left: Tensor, matrix: Tensor, right: Tensor, diag: bool) -> Tensor:
    """(K, N, M) products of rows (K, N, L), (K, M, L), by a matrix; or their diagonal (K, N)."""
    product = left @ matrix
    return (product * right).sum(-1) if diag else product @ right.mT

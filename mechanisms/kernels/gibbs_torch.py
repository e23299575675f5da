"""The reference's two computations (`mechanisms.gibbs`) by torch, in float64, on a GPU or a CPU.

The same dense expressions in the same order, moved to `device()` and back. Run and compared with
the reference on CPU; not run on a GPU here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mechanisms.checks import positive
from mechanisms.gibbs import Deviations, Gibbs, overflow
from mechanisms.pool import Floats

# Scores a block of deviations may hold: 128 MB.
_BLOCK = 16_000_000


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def gibbs(log_weights: Floats, rewards: Floats, tau: float) -> Gibbs:
    """As `mechanisms.gibbs.gibbs`."""
    positive("tau", tau)
    n = rewards.shape[2]
    groups = torch.cat([torch.ones(n, 1), 1 - torch.eye(n)], dim=1).to(device(), torch.float64)
    scores = _scores(_there(log_weights), _there(rewards), groups, tau)
    log_z = _log_mean_exp(scores, tau)
    return Gibbs(
        probabilities=torch.softmax(scores[:, 0], dim=1).cpu().numpy(),
        log_z=log_z[:, 0].cpu().numpy(),
        log_z_without=log_z[:, 1:].cpu().numpy(),
    )


@torch.inference_mode()
def deviations(
    log_weights: Floats,
    bids: Floats,
    features: Floats,
    alternatives: Floats,
    tau: float,
    ctr: Floats | None = None,
) -> Deviations:
    """As `mechanisms.gibbs.deviations`."""
    positive("tau", tau)
    B, M, n = features.shape
    G = alternatives.shape[2]
    out = {name: np.empty((B, n, G)) for name in ("itctr", "declared", "log_z")}
    without = np.empty((B, n))
    groups = 1 - torch.eye(n, dtype=torch.float64, device=device())
    step = max(1, _BLOCK // max(1, n * M * G))
    for start in range(0, B, step):
        rows = slice(start, start + step)
        shown, grid = _there(features[rows]), _there(alternatives[rows])
        others = _scores(
            _there(log_weights[rows]), _there(bids[rows])[:, None] * shown, groups, tau
        )
        slopes = shown.transpose(1, 2)
        lines = others[:, :, None] + (grid / tau)[..., None] * slopes[:, :, None]
        chances = torch.softmax(lines, dim=3)
        declared = grid * (chances @ slopes[..., None])[..., 0]
        clicked = slopes if ctr is None else _there(ctr[rows]).transpose(1, 2)
        out["itctr"][rows] = (chances @ clicked[..., None])[..., 0].cpu().numpy()
        out["declared"][rows] = declared.cpu().numpy()
        out["log_z"][rows] = _log_mean_exp(lines, tau).cpu().numpy()
        without[rows] = _log_mean_exp(others, tau).cpu().numpy()
    return Deviations(**out, log_z_without=without)


def _there(array: Floats) -> Tensor:
    return torch.tensor(array, dtype=torch.float64, device=device())


def _scores(log_weights: Tensor, rewards: Tensor, groups: Tensor, tau: float) -> Tensor:
    """(B, g, M) `log w_j + Σ_{i in group} r_i(y_j)/tau`; see the reference."""
    return (rewards @ groups).transpose(1, 2) / tau + log_weights[:, None]


def _log_mean_exp(scores: Tensor, tau: float) -> Tensor:
    if not torch.isfinite(scores).all():
        raise overflow(tau)
    return torch.logsumexp(scores, dim=-1) - math.log(scores.shape[-1])

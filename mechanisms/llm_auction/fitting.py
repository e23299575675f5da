"""Fitting a response surface to a recording, and what it says of replies that it has not seen.

How strongly s is held back (a ridge on its weights) decides between an LLM that reads its bids and
one that does not; infinite ridge is the surface that no bid moves. So of each request's replies
64 % are fitted on under every ridge, 16 % choose it, and 20 %, held out until then, tell the error
of a fit on the other 80 % - beside those of two rivals on the same replies: recorded frequencies,
whatever the bids (`flat`), and the kernel over bid profiles (`mechanisms.pretrained`).

What a fit says of a held-out reply, written under b, is the distribution over the replies that it
has seen, π(j | b). Measured are

- the log-score `log π(ads shown | b)`, in nats per reply: the probability of the very set of ads
  that the reply shows. One percent is spread over the sets that could be shown (none, each alone,
  and any other), as the reply may show a set that was not seen;
- the error of the ITCTR `Σ_j π(j | b)·ctr_ji` against the click probabilities of the reply;
- in ten equal bins by predicted ITCTR, what was predicted and what happened.

Shapes: requests B, replies M, ads n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mechanisms.llm_auction.surface import (
    COVARIATES,
    LEAST,
    Response,
    Surface,
    Written,
    covariates,
)
from mechanisms.pool import Floats, Ints
from mechanisms.pretrained import Pretrained, kernel_weights
from mechanisms.token_auction import shares

HIDDEN = 16
RIDGES = (1e-3, 1e-2, 1e-1)
SEED = 5
STEPS = 150
_TESTED, _CHOOSING = 0.2, 0.16
_SPREAD_OUT = 0.01
_BINS = 10
_CURVE = 25  # bids along which the surface is asked whether clicks ever fall

Weights = Callable[[Ints, Floats], Floats]
"""Requests (k,) and bids (k, K, n) to the probabilities (k, K, M) of their replies."""


def fit(written: Written, seed: int = SEED) -> tuple[Response, dict[str, Any]]:
    """s fitted to all replies, and its error on those held out from an earlier fit.

    Deterministic in `written` and `seed`. A recording with fewer than five replies a request, or
    whose replies were all written under the same bids, tells nothing of other bids: no response.
    """
    B, M, n = written.exposure.shape
    told = (written.profiles != written.profiles[:, :1]).any() and n > 0
    if M < 5 or not told:
        return Response.none(), {"ridge": None, "replies": 0}
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(M), (B, 1)), axis=1)
    tested = max(1, round(_TESTED * M))
    chosen_by = tested + max(1, round(_CHOOSING * M))
    test, choosing = written.part(order[:, :tested]), written.part(order[:, tested:chosen_by])
    learning, known = written.part(order[:, chosen_by:]), written.part(order[:, tested:])

    def score(response: Response) -> float:
        return log_scores(learning, Surface.over(learning, response).weights, choosing).mean()

    fits = {ridge: _fit(learning, ridge, seed) for ridge in RIDGES}
    scores = {None: score(Response.none()), **{r: score(fitted) for r, fitted in fits.items()}}
    ridge = max(scores, key=lambda r: scores[r])
    if ridge is None:
        response = tried = Response.none()
    else:
        tried, response = _fit(known, ridge, seed), _fit(written, ridge, seed)
    found = {"ridge": ridge, "replies": B * tested, **_errors(known, tried, test)}
    return response, found | {"falls": falls(Surface.over(written, response), written)}


def log_scores(known: Written, weights: Weights, asked: Written) -> Floats:
    """(B, m) log-probability of the ads shown by replies `asked`, by `weights` over `known`."""
    probabilities = weights(np.arange(len(known.ctr)), asked.profiles)
    same = (asked.exposure[:, :, None] == known.exposure[:, None]).all(axis=3)
    seen = (probabilities * same).sum(axis=2)
    return np.log((1 - _SPREAD_OUT) * seen + _SPREAD_OUT / (known.exposure.shape[2] + 2))


def falls(surface: Surface, written: Written) -> float:
    """By how much the surface breaks monotonicity, from 0 (nowhere) to 1.

    Sum of the greatest falls of ITCTR along an advertiser's own bid, as a fraction of the sum of
    ranges; over all requests and ads, the others' bids being those of the first profiles.
    """
    B, M, n = written.profiles.shape
    if not len(surface.response.outer):
        return 0.0
    rows, fallen, ranged = np.arange(B), 0.0, 0.0
    for profile in range(min(M, 4)):
        bids = written.profiles[:, profile]
        for i in range(n):
            others = np.delete(bids, i, axis=1).max(axis=1, initial=1.0)
            tried = np.repeat(bids[:, None], _CURVE, axis=1)
            tried[:, :, i] = others[:, None] * np.geomspace(LEAST, 1 / LEAST, _CURVE)
            itctr = (surface.weights(rows, tried) @ written.ctr[:, :, i, None])[..., 0]
            highest = np.maximum.accumulate(itctr, axis=1)
            fallen += (highest - itctr).max(axis=1).sum()
            ranged += (itctr.max(axis=1) - itctr.min(axis=1)).sum()
    return float(fallen / ranged) if ranged > 0 else 0.0


def _errors(known: Written, response: Response, test: Written) -> dict[str, Any]:
    """Log-scores and ITCTR errors of the surface and its rivals on held-out replies."""
    rows = np.arange(len(known.ctr))

    def by_kernel(rows: Ints, bids: Floats) -> Floats:
        return kernel_weights(shares(known.profiles[rows]), shares(bids), Pretrained().bandwidth)

    ways: dict[str, Weights] = {
        "surface": Surface.over(known, response).weights,
        "kernel": by_kernel,
        "flat": Surface.over(known, Response.none()).weights,
    }
    scores = {name: log_scores(known, weights, test) for name, weights in ways.items()}
    said = {name: weights(rows, test.profiles) @ known.ctr for name, weights in ways.items()}
    errors = {name: float(np.sqrt(((s - test.ctr) ** 2).mean())) for name, s in said.items()}
    gain = {}
    for rival in ("flat", "kernel"):
        by_request = (scores["surface"] - scores[rival]).mean(axis=1)
        deviation = by_request.std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0.0
        gain[rival] = [float(by_request.mean()), float(deviation)]
    order = np.argsort(said["surface"], axis=None, kind="stable")
    bins = [
        [float(said["surface"].ravel()[k].mean()), float(test.ctr.ravel()[k].mean())]
        for k in np.array_split(order, _BINS)
        if len(k)
    ]
    return {
        "log_score": {name: float(each.mean()) for name, each in scores.items()},
        "gain": gain,  # mean and standard error over requests
        "itctr_error": errors,
        "itctr_bins": bins,
        "itctr_bin_error": float(np.mean([abs(a - b) for a, b in bins])),
    }


def _fit(written: Written, ridge: float, seed: int) -> Response:
    """s of greatest pairwise pseudolikelihood, less a ridge on its weights."""
    given = covariates(written.profiles, written.relevance)
    with _one_thread():
        inputs = torch.as_tensor(given)
        shown = torch.as_tensor(written.exposure).double()
        draw = torch.Generator().manual_seed(seed)

        def start(*shape: int, scale: float) -> Tensor:
            drawn = torch.randn(*shape, generator=draw, dtype=torch.float64) * scale
            return drawn.requires_grad_()

        inner = start(HIDDEN, len(COVARIATES), scale=1.0)
        bias = start(HIDDEN, scale=0.5)
        outer = start(HIDDEN, scale=0.1)
        weights = [inner, bias, outer]
        optimizer = torch.optim.LBFGS(
            weights, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            s = torch.nn.functional.softsign(inputs @ inner.T + bias) @ outer  # (B, M, n)
            tilt = shown @ s.transpose(1, 2)  # (B, replies, profiles)
            own = tilt.diagonal(dim1=1, dim2=2)
            odds = own[:, :, None] + own[:, None] - tilt - tilt.transpose(1, 2)
            # all ordered pairs; j = k adds a constant
            lost = -logsigmoid(odds).mean() * written.exposure.shape[1] / 2
            lost = lost + ridge * sum((w**2).sum() for w in (inner, outer))
            lost.backward()
            return lost

        optimizer.step(loss)
        return Response(*(w.detach().numpy().copy() for w in weights))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread, so that their number changes no bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

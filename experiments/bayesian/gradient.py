"""Gradient ascent on policy networks that map a value to a bid.

Each class's bid function is a small network, `β_θ(v) = truthful(v) + top · net_θ(v)`, which starts
at the truthful bid. Ascent follows the interim payoff's own derivative,

    d/dθ E[u(v, β_θ(v))] = E[(a(v) x'(b) − p'(b)) · dβ_θ/dθ],     b = β_θ(v),

in which clicks x and payments p against the others' present strategies are exact, or means over
samples, as the mechanism allows (`interim`), and their derivatives are differences over bid cells:
so the derivative exists where an auction's ex post payoffs jump, which is what makes policy
gradients of auctions hard (Bichler, Fichtl, Heidekrüger, Kohring & Sutterer 2021 smooth by
evolution strategies). Each value ascends its elasticity, the derivative times worth by payoff at
stake, as low values would hardly learn otherwise. Value maximizers enter with a stretched worth, as
in `dual_averaging`. A network need not be monotone while it learns: its rivals meet its bid
distribution, and what is returned is the non-decreasing function of the same distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from experiments.bayesian.check import finite, whole
from experiments.bayesian.functions import POINTS
from experiments.bayesian.game import BayesianGame
from experiments.bayesian.interim import BidDistributions, Interim
from experiments.bayesian.response import LEAST_PROFIT, MOST_STRETCH
from mechanisms.pool import Floats

_STEEPEST = 2.0  # elasticities beyond are cut: they tell the direction


@dataclass(frozen=True)
class Gradient:
    """The learner's parameters.

    Attributes:
        steps: of Adam.
        learning_rate: of the first steps; it falls to 0 as a half cosine.
        width: of the two hidden layers.
        bid_cells: cells over which payoffs are differenced; also what smooths them.
        dual_step: γ of the stretch's steps `γ / sqrt(t)`.
        checks: times at which progress is kept.

    Raises:
        BadInput: a parameter out of range.
    """

    steps: int = 600
    learning_rate: float = 5e-3
    width: int = 32
    bid_cells: int = 96
    dual_step: float = 1.0
    checks: int = 25

    def __post_init__(self) -> None:
        name = "gradient"
        whole(name, 2, steps=self.steps, width=self.width)
        whole(name, 2, bid_cells=self.bid_cells, checks=self.checks)
        finite(name, positive=True, learning_rate=self.learning_rate, dual_step=self.dual_step)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and by far where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def learn(
    game: BayesianGame, interim: Interim, parameters: Gradient, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Train all classes' networks against each other.

    Args:
        game: who bids for what.
        interim: computes outcomes.
        parameters: see there.
        rng: draws the networks' first weights.

    Returns:
        Bid functions (C, POINTS), stretches (C,), and the bids as they went (checks, C, POINTS).
    """
    import torch

    par = parameters
    u = np.linspace(0, 1, POINTS)
    values = np.stack([prior.quantile(u) for prior in game.priors])
    edges = game.top[:, None] * np.linspace(0, 1, par.bid_cells + 1)
    nets = _networks(game.classes, par.width, rng)
    weights = [w for net in nets for w in net.parameters()]
    adam = torch.optim.Adam(weights, lr=par.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, par.steps)
    inputs = torch.tensor(2 * u[:, None] - 1)
    stretch, path = np.ones(game.classes), []
    checks = set(np.linspace(1, par.steps, par.checks, dtype=int).tolist())

    def policies() -> torch.Tensor:
        shape = torch.stack([net(inputs)[:, 0] for net in nets])
        truthful = torch.tensor(values / game.roi[:, None])
        return truthful + torch.tensor(game.top)[:, None] * shape

    for t in range(1, par.steps + 1):
        raw = policies()
        bids = np.clip(raw.detach().numpy(), 0.0, game.top[:, None])
        outcome = interim.cells(edges, BidDistributions.of_functions(np.sort(bids, axis=1)))
        slopes, slack = _slopes(game, values, stretch, bids, edges, outcome, interim.smooth)
        adam.zero_grad()
        # the derivative with respect to the bids is known: only the networks' own is torch's
        (-(torch.tensor(slopes) * raw).mean(axis=1).sum()).backward()
        adam.step()
        schedule.step()
        step = np.clip(par.dual_step / np.sqrt(t) * slack, -0.5, 0.5)
        stretch = np.clip(stretch * np.exp(step), 1.0, MOST_STRETCH)
        if t in checks:
            path.append(bids)
    with torch.no_grad():
        final = np.clip(policies().numpy(), 0.0, game.top[:, None])
    return np.sort(final, axis=1), stretch, np.stack(path)


def _networks(classes: int, width: int, rng: np.random.Generator) -> list:
    """One network per class, 1-width-width-1 with SELU, whose last layer starts at 0."""
    import torch

    nets = []
    for _ in range(classes):
        layers = [
            torch.nn.Linear(1, width),
            torch.nn.Linear(width, width),
            torch.nn.Linear(width, 1),
        ]
        for layer in layers:
            fan_in = layer.weight.shape[1]
            last = layer is layers[-1]
            drawn = rng.normal(0, 1, layer.weight.shape) / np.sqrt(fan_in)
            bias = rng.normal(0, 0.3, layer.bias.shape)
            layer.weight.data = torch.tensor(0.0 * drawn if last else drawn)
            layer.bias.data = torch.tensor(0.0 * bias if last else bias)
        selu = torch.nn.SELU
        nets.append(torch.nn.Sequential(layers[0], selu(), layers[1], selu(), layers[2]))
    return nets


def _slopes(
    game: BayesianGame,
    values: Floats,
    stretch: Floats,
    bids: Floats,
    edges: Floats,
    outcome: tuple[Floats, Floats],
    smooth: bool,
) -> tuple[Floats, Floats]:
    """Elasticities of interim payoffs, and ROI slacks.

    Returns:
        (C, POINTS) `worth · du/db / payoff at stake` at the bids, and (C,) `1 − roi E[p]/E[v x]` of
        value maximizers, 0 for others.
    """

    def slope(amounts: Floats, centres: Floats) -> Floats:
        """Central differences; where small bids win nothing, the jump to the first cell counts."""
        width = centres[1] - centres[0]
        ends = (2 * amounts[0] - amounts[1] if smooth else 0.0, 2 * amounts[-1] - amounts[-2])
        padded = np.concatenate([ends[:1], amounts, ends[1:]])
        return (padded[2:] - padded[:-2]) / (2 * width)

    worth = game.worth(values, stretch)
    slopes, slack = np.empty_like(bids), np.zeros(game.classes)
    for c in range(game.classes):
        centres = (edges[c, 1:] + edges[c, :-1]) / 2
        tried = [amounts[c] for amounts in outcome]
        more = [np.interp(bids[c], centres, slope(amounts, centres)) for amounts in tried]
        payoffs = worth[c][:, None] * tried[0] - tried[1]
        best = payoffs.argmax(axis=1)
        at_stake = payoffs[np.arange(len(best)), best]
        # a value that no cell's bid can profit from has nothing to learn from cells
        told = at_stake > LEAST_PROFIT * worth[c] * tried[0][best]
        steep = (worth[c] * more[0] - more[1]) * worth[c]
        slopes[c] = np.divide(steep, at_stake, out=np.zeros_like(steep), where=told)
        if game.value_maximizer[c]:
            won, paid = (np.interp(bids[c], centres, amounts) for amounts in tried)
            won = (values[c] * won).mean()
            slack[c] = 1 - game.roi[c] * paid.mean() / won if won > 0 else 0.0
    # at the ends of the range, ascent does not push further out
    outward = ((bids <= 0) & (slopes < 0)) | ((bids >= game.top[:, None]) & (slopes > 0))
    return np.where(outward, 0.0, np.clip(slopes, -_STEEPEST, _STEEPEST)), slack

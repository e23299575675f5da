"""Around a profile: who crowds out whom, and the phase portrait of two advertisers.

Crowding out of j by i, with clicks `x_j(b)` per request at the profile b:

    lost_ij = 1 − x_j(b) / x_j(b with b_i = 0),

the share of its clicks that j loses because i bids; negative where i's ad brings j's along.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.equilibrium.solver import EquilibriumReport
from experiments.game import Game
from mechanisms.pool import Floats

POINTS = 41  # of a best-reply curve
PATH = 200  # points of a learned path


@dataclass(frozen=True, eq=False)
class Portrait:
    """Two advertisers' best replies to each other, and what they learned.

    Attributes:
        pair: their numbers; the first is on the horizontal axis.
        axes: (points,) bids tried of each, in multiples of the truthful bid.
        replies: best replies (points,): of the first to the second's bids, and the reverse.
        paths: (K, R, 2) learned mean bids, thinned.
        found: (2,) the report's fixed bids, in multiples likewise.
    """

    pair: tuple[int, int]
    axes: tuple[Floats, Floats]
    replies: tuple[Floats, Floats]
    paths: Floats
    found: Floats


def crowding_out(game: Game, bids: Floats) -> tuple[Floats, Floats]:
    """`lost` (N, N) as above, 0 on the diagonal and for ads never clicked, and clicks (N,)."""
    N = len(bids)
    profiles = np.tile(bids, (N + 1, 1))
    profiles[np.arange(N), np.arange(N)] = 0.0
    clicks = game.outcome(profiles)[0] / game.people.values
    without, now = clicks[:-1], clicks[-1]
    lost = 1 - np.divide(now, without, out=np.ones_like(without), where=without > 0)
    lost[np.abs(lost) < 1e-12] = 0.0
    np.fill_diagonal(lost, 0.0)
    return lost, now


def closest_rivals(lost: Floats, value: Floats, value_maximizer: Floats) -> tuple[int, int]:
    """The pair that costs each other most value; one of each objective if there are both.

    Args:
        lost: (N, N) of `crowding_out`.
        value: (N,) value attained.
        value_maximizer: (N,) bool.

    Returns:
        A utility maximizer first, where there is one.
    """
    cost = np.minimum(np.maximum(lost, 0) * value, (np.maximum(lost, 0) * value).T)
    vm = np.asarray(value_maximizer, dtype=bool)
    cost = np.where(np.eye(len(vm), dtype=bool), -1.0, cost)
    if vm.any() and not vm.all():
        cost = np.where(vm[:, None] != vm, cost, -1.0)
    i, j = (int(k) for k in np.unravel_index(cost.argmax(), cost.shape))
    return (j, i) if vm[i] and not vm[j] else (i, j)


def portrait(report: EquilibriumReport, pair: tuple[int, int]) -> Portrait:
    """Best replies of two advertisers, all others at the report's fixed bids; and their paths."""
    game, bids = report.game, report.fixed_bids
    truthful = game.people.truthful_bids
    paths = report.play.bids[:, :, list(pair)] / truthful[list(pair)]
    some = np.unique(np.geomspace(1, len(paths), PATH).astype(int)) - 1
    found = bids[list(pair)] / truthful[list(pair)]
    reach = [1.15 * max(1.3, found[k], float(paths[some][..., k].max())) for k in range(2)]
    axes = tuple(np.linspace(0, top, POINTS) for top in reach)
    replies = []
    for me, rival, tried in ((0, 1, axes[1]), (1, 0, axes[0])):
        profiles = np.tile(bids, (POINTS, 1))
        profiles[:, pair[rival]] = tried * truthful[pair[rival]]
        # where it is not listed, its bid is nothing to anyone
        listed = np.flatnonzero((game.pool.ads == pair[me]).any(axis=1))
        alone = Game(game.mechanism, game.pool.take(listed), game.people)
        replies.append(alone.best_replies(profiles).bids[:, pair[me]] / truthful[pair[me]])
    return Portrait(pair, axes, tuple(replies), paths[some], found)

"""Golden playthroughs: a fixed pool and bids, every number of the outcome, written out as text.

A change of any printed digit fails. If the change is meant, write the files again and read the
difference: `PYTHONPATH=. python tests/mechanisms/test_playthrough.py --regenerate`.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from mechanisms.gibbs import kl_from_reference
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

FOLDER = Path(__file__).parent / "playthroughs"

# each mechanism by name, with the settings its file plays through
PLAYS = {
    "mosaic": [
        {"tau": 0.3},
        {"tau": 0.3, "settlement": "realised"},
        {"tau": 0.3, "offset": False},
        {"tau": 1e-6},
    ],
    "llm-auction-ideal": [{"tau": 0.3}, {"tau": 0.3, "user_weight": 0.5, "max_ads": 1}],
    "first-price": [{}, {"slots": 2}, {"slots": 2, "reserve": 2.0}],
    "gsp": [{}, {"slots": 2}, {"slots": 2, "reserve": 2.0}],
    "vcg": [{}, {"slots": 2}, {"slots": 2, "reserve": 2.0}],
    "segment": [{}, {"no_ad": 0.5}, {"segments": 2}, {"segments": 3, "no_ad": 0.5}],
}
BIDS = np.array([2.5, 1.5, 3.0])
GRID = np.array([0.0, 1.0, 2.0, 4.0])


def fixed_pool():
    """Two requests, six replies: none, each ad alone, two pairs; ad 3 is new in request 1."""
    ctr = np.array(
        [
            [[0, 0, 0], [0.4, 0, 0], [0.3, 0, 0], [0, 0.5, 0], [0, 0, 0.2], [0.25, 0.35, 0]],
            [[0, 0, 0], [0.1, 0, 0], [0, 0.6, 0], [0, 0, 0.45], [0, 0.5, 0.3], [0.05, 0, 0.4]],
        ]
    )
    return ReplyPool.from_arrays(
        ctr,
        log_ref=[[-9, -11, -10.5, -11, -12, -14], [-8, -9, -10, -11, -10.5, -12.25]],
        log_gen=[[-10, -11, -10, -11, -11, -13], [-8.5, -9, -9, -10, -11, -12]],
        malformed=[[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 2]],
    )


def written(label, array):
    """One line per request; 12 significant digits, and 0 for what only rounding keeps from it."""
    lines = [f"  {label}"]
    for row in np.asarray(array, dtype=np.float64).reshape(len(array), -1):
        lines.append("    " + "  ".join(f"{0.0 if abs(x) < 1e-12 else x:.12g}" for x in row))
    return lines


def playthrough(name):
    """The text of a mechanism's file."""
    pool = fixed_pool()
    lines = [f"mechanism {name}"]
    lines += written("ctr (B, M, n), replies in order", pool.ctr)
    lines += written("log importance weights (B, M)", pool.log_weights)
    lines += written("malformed (B, M)", pool.malformed)
    lines += written("bids (n,)", BIDS[None]) + written("alternative bids (G,)", GRID[None])
    for parameters in PLAYS[name]:
        mechanism = make_mechanism(name, **parameters)
        outcome = mechanism.run(pool, BIDS, np.random.default_rng(7))
        shape = (*outcome.itctr.shape, len(GRID))
        itctr, payments = mechanism.counterfactual(pool, BIDS, np.broadcast_to(GRID, shape))
        lines += ["", ", ".join(f"{key} = {value}" for key, value in mechanism.parameters.items())]
        for field in ("probabilities", "itctr", "payments", "chosen", "clicks", "charges"):
            lines += written(field, getattr(outcome, field))
        kl = kl_from_reference(pool.log_weights, outcome.probabilities)
        lines += written("KL from reference, nats", kl[:, None])
        lines += written("counterfactual itctr, ad by ad", itctr)
        lines += written("counterfactual payments, ad by ad", payments)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PLAYS)
def test_playthrough(name):
    assert playthrough(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--regenerate"]:
    for name in PLAYS:
        (FOLDER / f"{name}.txt").write_text(playthrough(name), encoding="utf-8")

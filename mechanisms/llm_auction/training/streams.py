"""Random streams by purpose: what a step draws depends on its key alone, so it can be drawn again.

The purpose stands second in every key, and all keys of a purpose have one length (NumPy takes keys
that differ by trailing zeros only for the same).
"""

from __future__ import annotations

import numpy as np

WARM_START, DISTILL = 1, 2  # (seed, purpose, step, example)
LOGS, HELD = 3, 4  # (seed, purpose, 0)
DEPLOY, DEPLOYED, CLICKS, PREFER, PREFERRED = 5, 6, 7, 8, 9  # (seed, purpose, epoch)
ORDER = 10  # (seed, purpose, epoch, pass)
ASK, ANSWER, CLICK = 11, 12, 13  # (seed, purpose, iteration)


def seeded(*key: int) -> np.random.Generator:
    """The generator of a key."""
    return np.random.default_rng(list(key))


def derived(*key: int) -> int:
    """A seed from a key, for what asks a number."""
    return int(seeded(*key).integers(2**31))

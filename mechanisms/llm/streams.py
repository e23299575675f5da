"""Seeds of random streams that must be apart.

Replies are driven by streams (seed, key, reply), which NumPy's `SeedSequence` mixes from 32-bit
words. A larger number is two words there, and two words may be what another stream has too; so
every seed and key is kept to one word, and what needs streams of its own gets a seed of its own.
"""

from __future__ import annotations

import hashlib

WORD = 1 << 32


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed below 2^32 for a purpose: the same for the same arguments, else another."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")

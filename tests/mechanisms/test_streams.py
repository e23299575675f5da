"""Random streams that must be apart are."""

import itertools

import numpy as np

from mechanisms.llm.streams import WORD, derived_seed


def test_streams_of_all_purposes_are_apart():
    """First draws of tokens (seed, key, k) and insertions (seed, key, k, 1) never coincide."""
    seeds = [0, 1, WORD - 1]
    seeds += [derived_seed(0, "context"), derived_seed(1, "context"), derived_seed(0, "live", 0)]
    seeds += [derived_seed(0, "recording", salt) for salt in range(1, 6)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < WORD
    words = [
        (seed, key, k, *purpose)
        for seed, key, k in itertools.product(seeds, range(6), range(6))
        for purpose in ((), (1,))
    ]
    first = [np.random.default_rng(word).random() for word in words]
    assert len(set(first)) == len(first)


def test_a_derived_seed_is_the_same_every_time():
    assert derived_seed(7, "live", 3) == derived_seed(7, "live", 3)
    assert derived_seed(7, "live", 3) != derived_seed(7, "live", 4)
    # and on every machine: recordings are found again by it
    assert derived_seed(0, "live") == 3920717788

"""Several replies in one row, and one at a time: the same log-probabilities."""

import numpy as np
import pytest
import torch

from mechanisms.llm_auction.training.packing import Pack, batches, rows_of


def some_packs(rng, count):
    return [
        Pack(
            rng.integers(3, 200, size=rng.integers(1, 9)).tolist(),
            [
                rng.integers(3, 200, size=rng.integers(1, 7)).tolist()
                for _ in range(rng.integers(1, 5))
            ],
        )
        for _ in range(count)
    ]


def test_rows_hold_what_was_packed():
    packs = some_packs(np.random.default_rng(0), 20)
    rows = rows_of(packs)
    assert rows.count == sum(len(pack.replies) for pack in packs)
    assert rows.targets.tolist() == [t for p in packs for reply in p.replies for t in reply]
    assert torch.bincount(rows.reply).tolist() == [len(r) for p in packs for r in p.replies]
    flat, positions = rows.ids.flatten(), rows.positions.flatten()
    at = 0
    for pack in packs:
        for reply in pack.replies:
            before = rows.before[at : at + len(reply)]
            # predicted by the prompt's end, then by each reply token but the last
            assert flat[before].tolist() == [pack.prompt[-1], *reply[:-1]]
            start = len(pack.prompt) - 1
            assert positions[before].tolist() == list(range(start, start + len(reply)))
            at += len(reply)


def test_a_reply_sees_its_prompt_and_itself_and_nobody_else():
    pack = Pack([5, 6], [[7, 8], [9]])
    mask = rows_of([pack, Pack([5], [[6]])]).mask[0, 0]
    seen = [[int(i) for i in row.nonzero()] for row in mask]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_batches_hold_every_pack_once_and_stay_within_their_size(tokens):
    packs = some_packs(np.random.default_rng(1), 30)
    found = batches(packs, tokens)
    assert sorted(i for batch in found for i in batch) == list(range(30))
    for batch in found:
        padded = len(batch) * max(packs[i].length for i in batch)
        assert padded <= tokens or len(batch) == 1

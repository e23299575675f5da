"""Drawing the next token, and which rows stay in the batch."""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mechanisms.llm.decoding import Row, choose, compact

quick = settings(max_examples=150, deadline=None)
LEAST = float(np.nextafter(0, 1))
MOST = float(np.nextafter(1, 0))


def row(u, queue=()):
    return Row(0, 0, np.array([u]), queue=list(queue))


@st.composite
def logits(draw):
    """(rows, vocabulary) logits: flat, peaked, tied, with −inf and −inf-like entries."""
    rows = draw(st.integers(1, 4))
    vocabulary = draw(st.sampled_from([1, 2, 191, 192, 193, 384, 420, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1.0, 10.0, 1000.0]))
    out = rng.normal(0, scale, (rows, vocabulary))
    share = draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))
    dead = rng.random(out.shape) < share
    dead[np.arange(rows), rng.integers(0, vocabulary, rows)] = False
    out[dead] = draw(st.sampled_from([-np.inf, float(np.finfo(np.float32).min), -1e4]))
    return torch.tensor(out + draw(st.sampled_from([0.0, 50.0, -300.0])), dtype=torch.float32)


@quick
@given(logits(), st.lists(st.floats(0, MOST), min_size=4, max_size=4))
@example(torch.tensor([[0.0, 0.0]]), [0.0, 0.5, LEAST, MOST])
@example(torch.full((1, 1000), -torch.inf).index_fill(1, torch.tensor([999]), 0.0), [MOST] * 4)
@example(torch.full((1, 1000), -torch.inf).index_fill(1, torch.tensor([500]), 0.0), [0.0] * 4)
def test_choose_inverts_the_cumulative_distribution(x, uniforms):
    uniforms = uniforms[: len(x)]
    ids, log_probs = choose(x, [row(u) for u in uniforms])
    exact = torch.log_softmax(x.double(), dim=1).numpy()
    p = np.exp(exact)
    cumulative = p.cumsum(axis=1)
    for r, (u, token) in enumerate(zip(uniforms, ids.tolist(), strict=True)):
        # in single precision a token of probability e^-104 has none
        assert exact[r, token] > -104
        np.testing.assert_allclose(float(log_probs[r]), exact[r, token], rtol=1e-5, atol=1e-4)
        # the same token as the plain inverse of the CDF, unless u is at its very edge
        below = cumulative[r, token] - p[r, token]
        assert below - 1e-5 <= u <= cumulative[r, token] + 1e-5


@quick
@given(st.integers(1, 1000), st.integers(0, 2**32 - 1))
def test_choose_is_the_plain_inverse_of_the_cdf(vocabulary, seed):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(0, 3, (3, vocabulary)), dtype=torch.float32)
    uniforms = rng.random(3)
    ids, _ = choose(x, [row(u) for u in uniforms])
    p = torch.softmax(x.double(), dim=1).numpy()
    for r, u in enumerate(uniforms):
        cumulative = p[r].cumsum()
        if np.abs(cumulative - u).min() > 1e-5:
            assert ids[r] == np.searchsorted(cumulative, u, side="right")


def test_choose_forces():
    x = torch.tensor([[0.0, -torch.inf, 1.0], [2.0, 0.0, 0.0]])
    ids, log_probs = choose(x, [row(0.9, queue=[1, 0]), row(0.0)])
    assert ids.tolist() == [1, 0]
    assert log_probs[0] == -torch.inf
    np.testing.assert_allclose(float(log_probs[1]), 2 - np.log(np.exp(2) + 2), rtol=1e-6)


@dataclass(eq=False)
class Stub:
    name: tuple[int, int]
    done: bool
    tokens: list = field(default_factory=list)


@quick
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_compact_keeps_all_that_runs(prompts, per, data):
    done = data.draw(st.lists(st.booleans(), min_size=prompts * per, max_size=prompts * per))
    rows = [Stub(divmod(i, per), each) for i, each in enumerate(done)]
    kept = compact(rows, prompts)
    if all(done):
        return
    if kept is None:
        return
    keep, index = (each.tolist() for each in kept)
    assert len(set(index)) == len(index) < len(rows)
    assert {i for i, row in enumerate(rows) if not row.done} <= set(index)
    width = len(index) // len(keep)
    assert len(index) == len(keep) * width
    for r, i in enumerate(index):
        assert rows[i].name[0] == keep[r // width]

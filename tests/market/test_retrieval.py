"""Retrieval: hand-made cases, and agreement with one cosine at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from market.errors import BadInput
from market.retrieval import retrieve


def test_nearest_first_whatever_the_length():
    ads = [[1, 0], [10, 10], [0, 0.1], [-1, 0]]
    assert retrieve([[2, 0], [0, 3]], ads, 3).tolist() == [[0, 1, 2], [2, 1, 0]]


def test_ties_go_to_the_lower_index():
    ads = [[0, 1], [1, 0], [3, 0], [0.1, 0], [0, 2]]
    assert retrieve([[1, 0]], ads, 5).tolist() == [[1, 2, 3, 0, 4]]
    assert retrieve([[0, 0]], ads, 5).tolist() == [[0, 1, 2, 3, 4]]


def test_equal_ads_tie_and_a_batch_does_not_matter():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 384)).astype(np.float32)
    ads = np.repeat(rng.normal(size=(7, 384)).astype(np.float32), 50, axis=0)
    queries = np.concatenate([one, rng.normal(size=(63, 384)).astype(np.float32)])
    found = retrieve(queries, ads, 350)
    assert np.array_equal(found[:1], retrieve(one, ads, 350))
    assert (np.diff(found.reshape(64, 7, 50), axis=2) == 1).all()


def test_extreme_lengths():
    ads = [[1e-200, 0], [0, 1e200]]
    assert retrieve([[1e200, 0], [0, 1e-200]], ads, 1).tolist() == [[0], [1]]


def test_no_queries():
    found = retrieve(np.empty((0, 4)), np.eye(4), 2)
    assert found.shape == (0, 2)
    assert np.issubdtype(found.dtype, np.integer)


@given(data=st.data())
def test_agrees_with_one_cosine_at_a_time(data):
    d = data.draw(st.integers(1, 4))
    elements = st.integers(-3, 3).map(float)
    queries = data.draw(
        hnp.arrays(float, st.tuples(st.integers(1, 4), st.just(d)), elements=elements)
    )
    ads = data.draw(hnp.arrays(float, st.tuples(st.integers(1, 6), st.just(d)), elements=elements))
    n = data.draw(st.integers(1, len(ads)))

    def cosine(q, a):
        scale = np.linalg.norm(q) * np.linalg.norm(a)
        return round(float(q @ a / scale), 9) if scale else 0.0

    expected = [sorted(range(len(ads)), key=lambda i: (-cosine(q, ads[i]), i))[:n] for q in queries]
    assert retrieve(queries, ads, n).tolist() == expected


@pytest.mark.parametrize("n", [0, -1, 4])
def test_impossible_n(n):
    with pytest.raises(BadInput, match="from 1 to 3"):
        retrieve(np.eye(3), np.eye(3), n)


@pytest.mark.parametrize(
    ("queries", "ads"),
    [
        (np.eye(3), np.eye(2)),
        (np.ones(3), np.eye(3)),
        (np.eye(3), np.full((3, 3), np.nan)),
    ],
)
def test_bad_embeddings(queries, ads):
    with pytest.raises(BadInput, match="in retrieve"):
        retrieve(queries, ads, 1)

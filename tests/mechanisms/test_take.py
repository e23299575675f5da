"""Pools taken from pools: the same arrays as if copied, gathered only when asked for."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.slots import RenderableSets, stand_alone_ctr
from tests.mechanisms.pools import pools, quick

ARRAYS = ("ctr", "log_ref", "log_gen", "quality", "ads", "exposure", "malformed", "log_weights")


def copied(pool, k):
    """What `take` was before it was lazy."""
    return ReplyPool(
        ctr=pool.ctr[k],
        log_ref=pool.log_ref[k],
        log_gen=pool.log_gen[k],
        quality=pool.quality[k],
        ads=pool.ads[k],
        exposure=pool.exposure[k],
        malformed=pool.malformed[k],
        num_advertisers=pool.num_advertisers,
        extras={name: array[k] for name, array in pool.extras.items()},
        manifest=pool.manifest,
    )


def same(taken, expected):
    assert taken.shape == expected.shape
    for name in (*ARRAYS, "effective_sample_size"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(expected, name))
    assert set(taken.extras) == set(expected.extras) and len(taken.extras) == len(expected.extras)
    for name, array in expected.extras.items():
        np.testing.assert_array_equal(taken.extras[name], array)
    assert taken.content_hash == expected.content_hash


@quick
@given(pools(), st.data())
def test_is_the_copy_it_used_to_be(pool, data):
    k = data.draw(st.lists(st.integers(-len(pool.ads), len(pool.ads) - 1), min_size=1, max_size=6))
    taken = pool.take(k)
    again = data.draw(st.lists(st.integers(-len(k), len(k) - 1), min_size=1, max_size=4))
    same(taken.take(again), copied(copied(pool, k), again))
    same(taken, copied(pool, k))
    assert taken.take(again).origin is pool
    np.testing.assert_array_equal(taken.rows, np.asarray(k) % len(pool.ads))


@quick
@given(pools(), st.data())
def test_what_is_derived_is_that_of_the_copy(pool, data):
    k = data.draw(st.lists(st.integers(0, len(pool.ads) - 1), min_size=1, max_size=6))
    taken, expected = pool.take(k), copied(pool, k)
    np.testing.assert_array_equal(stand_alone_ctr(taken), stand_alone_ctr(expected))
    mine, theirs = RenderableSets.of(taken), RenderableSets.of(expected)
    for name in ("shows", "leader", "share", "ctr", "first", "within"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


@pytest.fixture
def pool():
    return ReplyPool.synthetic(5, 4, 3, np.random.default_rng(0))


def test_gathers_only_what_is_asked_for(pool):
    taken = pool.take([1, 1, 4])
    held = set(vars(taken))
    assert not held & {"ctr", "exposure", "quality"}
    assert taken.quality is taken.quality
    assert set(vars(taken)) - held == {"quality"}


def test_derives_once_for_all_that_is_taken(pool):
    seen = []

    def compute(origin):
        seen.append(origin)
        return object()

    first = pool.take([0, 1]).take([1]).derived("key", compute)
    assert pool.derived("key", compute) is first
    assert len(seen) == 1 and seen[0] is pool
    # another pool, even of the same arrays, derives its own
    assert replace(pool).derived("key", compute) is not first


def test_forgets_what_was_asked_for_longest_ago(pool):
    made = []
    for tau in range(1, 1000):
        # one that is asked for all the time is not forgotten, however old
        pool.derived("shelf", lambda _: made.append("shelf"))
        pool.derived(Mosaic(tau), lambda _: made.append("candidates"))
    assert made.count("shelf") == 1
    assert made.count("candidates") == 999
    assert len(vars(pool)["_derived"]) < 50
    pool.derived(Mosaic(999), lambda _: pytest.fail("forgotten"))


def test_refuses_what_a_pool_refuses(pool):
    taken = pool.take([2])
    with pytest.raises(FrozenInstanceError):
        taken.ctr = np.zeros(3)
    with pytest.raises(AttributeError, match="clicks"):
        _ = taken.clicks
    with pytest.raises(IndexError):
        pool.take([5])
    with pytest.raises(IndexError):
        taken.take([1])


def test_travels_and_may_be_replaced(pool):
    taken = pool.take([3, 0])
    taken.derived("unpicklable", lambda _: lambda: None)
    for travelled in (pickle.loads(pickle.dumps(taken)), copy.deepcopy(taken), copy.copy(taken)):
        same(travelled, copied(pool, [3, 0]))
    same(replace(taken), copied(pool, [3, 0]))
    louder = replace(taken, quality=taken.quality + 1)
    np.testing.assert_array_equal(louder.quality, pool.quality[[3, 0]] + 1)
    assert louder.origin is louder

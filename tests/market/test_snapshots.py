"""What a market and its learners know comes back as it was; what could not is refused in time."""

from functools import cached_property

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.learners import LEARNERS
from agents.learners.truthful import Truthful
from market.checkpoint import Checkpoints
from market.packing import pack, unpack
from mechanisms.errors import BadInput
from tests.market.stopping import left_behind, market, stopped


def test_a_snapshot_is_a_copy_and_restores_in_memory():
    model = market()
    model.run(rounds=4)
    snapshot = model.snapshot()
    model.run()
    other = market()
    other.run(rounds=9)  # a market that has moved on may go back
    other.restore(snapshot)
    other.run()
    assert left_behind(other) == left_behind(model)
    again = market()
    again.restore(snapshot)  # and what `other` did has not touched it
    assert again.round == 4 and again.advertisers[2].bid.tolist() == again.bids[:, 2].tolist()
    with pytest.raises(BadInput, match="another market"):
        market(replications=3).restore(snapshot)
    with pytest.raises(BadInput, match="another market"):
        market(("hedge",)).restore(snapshot)


class Counting(Truthful):
    """Keeps what it knows outside of `state`, which nothing forbids."""

    name = "counting"
    feedback = "bandit"

    def __init__(self, *args):
        super().__init__(*args)
        self.seen, self.history, self.noise = 0, [], np.random.default_rng(3)

    def bids(self):
        return super().bids() * (1 + 0.01 * self.seen + 0.1 * self.noise.random())

    def learn(self, feedback):
        self.seen += 1
        self.history.append((float(feedback.charges.sum()), {"round": self.seen}))


class Networked(Truthful):
    name = "networked"

    def __init__(self, *args):
        super().__init__(*args)
        self.networks = [object()]


def test_a_learner_of_ones_own_needs_no_extra_code(tmp_path, monkeypatch):
    monkeypatch.setitem(LEARNERS, "counting", Counting)
    whole = market(("counting",))
    whole.run()
    model = stopped(tmp_path, lambda: market(("counting",)), 2, 9)
    model.run()
    assert left_behind(model) == left_behind(whole)
    assert model.groups[0].learner.history == whole.groups[0].learner.history


def test_a_learner_that_cannot_be_stored_is_refused_before_the_first_round(tmp_path, monkeypatch):
    monkeypatch.setitem(LEARNERS, "networked", Networked)
    with pytest.raises(BadInput) as refused:
        Checkpoints(tmp_path, market(("networked",))).resume()
    assert str(refused.value).startswith(
        "learner networked keeps networks[0] (of type object), which a checkpoint cannot hold; "
    )


class Late(Truthful):
    """Sets what it knows when it first knows it."""

    name = "late"
    feedback = "bandit"

    def bids(self):
        return super().bids() * (1.0 + 0.1 * np.tanh(getattr(self, "last", 0.0)) + self.bonus)

    @cached_property
    def bonus(self):
        return float(self.rng.random())

    def learn(self, feedback):
        self.last = feedback.clicks.copy()


def test_what_a_learner_sets_first_in_a_round_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setitem(LEARNERS, "late", Late)
    whole = market(("late",))
    whole.run()
    model = stopped(tmp_path, lambda: market(("late",)), 2, 9)
    model.run()
    assert left_behind(model) == left_behind(whole)
    snapshot = model.groups[0].learner.snapshot()
    del snapshot["state"]
    with pytest.raises(BadInput, match="not one of learner late, it lacks state; make it as"):
        market(("late",)).groups[0].learner.restore(snapshot)


VIEWS = {
    "a view with gaps": (lambda s: s[:, 0], "x, an array that does not lie in one piece"),
    "axes swapped": (lambda s: s.copy().swapaxes(1, 2), "x, an array that does not lie in one"),
    "reversed": (lambda s: np.arange(3)[::-1], "x, an array that does not lie in one piece"),
    "a part": (lambda s: s[1], r"state['s'] and x, arrays that share memory"),
    "another shape": (lambda s: [s.reshape(-1)], r"state['s'] and x[0], arrays that share memory"),
}


@pytest.mark.parametrize(("view", "said"), VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("late", [False, True], ids=["made", "learned"])
def test_a_learner_that_keeps_views_is_refused(late, view, said, tmp_path, monkeypatch):
    class Viewing(Truthful):
        name = "viewing"
        feedback = "bandit"

        def __init__(self, *args):
            super().__init__(*args)
            self.state["s"] = np.ones((2, 3, len(self.population.values)))
            if not late:
                self.x = view(self.state["s"])

        def learn(self, feedback):
            self.x = view(self.state["s"])

    monkeypatch.setitem(LEARNERS, "viewing", Viewing)
    model = market(("viewing",))
    kept = Checkpoints(tmp_path, model)
    with pytest.raises(BadInput) as refused:
        kept.resume()  # before the first round, where it is seen then
        assert late
        model.step()
        kept.write()
    assert model.round == int(late) and not list(tmp_path.iterdir())
    assert str(refused.value).startswith(f"learner viewing keeps {said}")
    assert "; keep a `.copy()`, or give it a `snapshot`" in str(refused.value)


def test_a_snapshot_takes_one_object_twice_only_where_it_comes_back_as_one():
    learner, rng, array = market().groups[0].learner, np.random.default_rng(0), np.arange(6.0)
    learner.both = [(rng, array), (rng, array), array[:0], np.asfortranarray(np.ones((2, 3)))]
    one, other = learner.snapshot()["both"][:2]
    assert one[0] is other[0] and one[1] is other[1]
    learner.alias = learner.state
    with pytest.raises(BadInput, match="keeps alias and state, the same dict, which a checkpoint"):
        learner.snapshot()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    | st.builds(np.float64, st.floats()) | st.builds(np.int64, st.integers(-5, 5))
    | st.builds(np.arange, st.integers(0, 4)) | st.builds(np.random.default_rng, st.just(1))
    | st.builds(lambda: np.random.Generator(np.random.MT19937(2))),
    lambda inner: st.lists(inner) | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)  # fmt: skip


def canonical(value):
    if isinstance(value, np.random.Generator):
        return canonical(value.bit_generator.state)
    if isinstance(value, np.ndarray | np.generic):
        return (type(value), value.dtype, value.shape, value.tobytes())
    if isinstance(value, dict):
        return [(key, canonical(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return (type(value), [canonical(each) for each in value])
    return (type(value), repr(value))


@given(plain)
@settings(max_examples=60, deadline=None)
def test_plain_data_comes_back_as_it_was(value):
    assert canonical(unpack(pack(value))) == canonical(value)


def test_what_was_one_object_is_one_again():
    rng, array = np.random.default_rng(0), np.arange(3)
    (one, other), (first, second) = unpack(pack([[rng, rng], (array, array)]))
    assert one is other and first is second
    with pytest.raises(BadInput, match=r"state\['a'\]\[1\] \(of type set\)"):
        pack({"a": [1, {2}]})

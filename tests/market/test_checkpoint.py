"""A market that is stopped after any round goes on elsewhere, to the same bytes."""

import json
import os
import pickle
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace as Record

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.learners import LEARNERS
from agents.learners.truthful import Truthful
from agents.tally import Unbalanced
from market import checkpoint
from market.checkpoint import Checkpoints
from market.errors import Stopped
from market.model import MarketModel
from market.packing import pack, unpack
from mechanisms.errors import BadInput
from mechanisms.llm.journal import Journaled
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.market import test_iamfm, test_live
from tests.mechanisms.leader import Lead, Leader

N, ROUNDS = 5, 14
POOL = ReplyPool.synthetic(12, 8, 3, np.random.default_rng(1), advertisers=N)
OTHER_POOL = ReplyPool.synthetic(12, 8, 3, np.random.default_rng(2), advertisers=N)


def market(learners=("hedge", "pacing"), seed=0, pool=POOL, mechanism=None, **changes):
    specs = [
        Record(
            objective="value" if i % 2 else "utility",
            value=1.0 + 0.3 * i,
            target_roi=1.2 if i % 2 else None,
            budget=0.8 if i < 3 else None,
            learner=Record(name=learners[i % len(learners)], parameters={}),
        )
        for i in range(N)
    ]
    sizes = {"rounds": ROUNDS, "requests_per_round": 5, "replications": 2} | changes
    scenario = Record(advertisers=specs, **sizes)
    return MarketModel(
        scenario, seed, pool=pool, mechanism=mechanism or Mosaic(0.3), collect_every=3
    )


def left_behind(model):
    """All that a run leaves: frames, plans, accounts, learners, what Mesa collected."""
    collected = model.datacollector
    return {
        "rounds": model.ledger.rows().tobytes(),
        "account": model.account.totals.tobytes(),
        "learners": pack([group.learner.snapshot() for group in model.groups]),
        "plans": repr(model.platform.plans),
        "collected": repr((collected.model_vars, collected._agent_records)),
        "chance": (model.rng.random(), model.random.random()),
        "steps": (model.steps, model.running),
    }


def stopped(folder, make, *at):
    """The market of `make`, stopped after each of the rounds `at` and gone on with in a new one."""
    for k in at:
        model = make()
        kept = Checkpoints(folder, model)
        kept.resume()
        model.run(rounds=k - model.round)
        kept.write()
    model = make()
    assert Checkpoints(folder, model).resume() == at[-1] == model.round
    return model


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_learners_of_all_kinds_go_on(learner, tmp_path):
    learners = (learner, "pacing", "hedge")
    whole = market(learners)
    result = whole.run()
    model = stopped(tmp_path, lambda: market(learners), 1, 5, 6)
    assert model.run().advertisers.equals(result.advertisers)
    assert left_behind(model) == left_behind(whole)


@pytest.mark.parametrize("at", [1, 3, 4, 6, ROUNDS])
def test_periods_go_on_wherever_they_are_stopped(at, tmp_path):
    whole, model = market(mechanism=Leader(4)), None
    whole.run()
    model = stopped(tmp_path, lambda: market(mechanism=Leader(4)), at)
    model.run()
    assert left_behind(model) == left_behind(whole)


def test_plans_that_come_out_otherwise_are_refused(tmp_path, monkeypatch):
    model = market(mechanism=Leader(4))
    kept = Checkpoints(tmp_path, model)
    model.run(rounds=6)
    kept.write()
    monkeypatch.setattr(Lead, "record", {"leader": 0, "seed": 0.1 + 0.2})
    model = market(mechanism=Leader(4))
    with pytest.raises(BadInput, match=r"the plan of round 4 came out otherwise .*\bseed of repl"):
        Checkpoints(tmp_path, model).resume()


@pytest.mark.parametrize("at", [3, 6])
def test_a_sponsorship_that_was_searched_for_is_found_again(at, tmp_path):
    def make():
        # a pool of its own, which keeps no plans made before
        pool, mechanism = replace(test_iamfm.POOL), test_iamfm.iamfm(tokens=2000)
        model = test_iamfm.market(mechanism, rounds=14)
        scenario = Record(**vars(model.scenario))
        return MarketModel(scenario, 0, pool=pool, mechanism=mechanism)

    whole = make()
    whole.run()
    model = stopped(tmp_path, make, at)
    model.run()
    assert left_behind(model) == left_behind(whole)


def test_live_replies_go_on_within_a_round(engine, tmp_path):
    pool = test_live.record(
        test_live.REQUESTS, engine, test_live.BehaviouralUsers(test_live.HashEncoder()),
        test_live.DESIGN, num_advertisers=test_live.N,
    )  # fmt: skip

    class Killed(Exception):
        pass

    class Dying:
        """An engine that is killed in a call, after some of its prompts, if told to."""

        def __init__(self):
            self.calls, self.prompts, self.dies_in = 0, 0, None

        def __getattr__(self, name):
            return getattr(engine, name)

        def generate(self, prompts, *args, done, finished, **options):
            self.calls += 1

            def report(results):
                done(results)
                self.prompts += len(results)
                if self.calls == self.dies_in:
                    raise Killed

            return engine.generate(prompts, *args, done=report, finished=finished, **options)

    def make(dying):
        live = test_live.live_replies(Journaled(dying, tmp_path / "journal"), pool)
        live.journals = [live.engine]
        return test_live.market(pool, live, Mosaic(0.2)), live

    straight = Dying()
    whole, all_replies = make(straight)
    result = whole.run()
    all_replies.engine.delete()

    dying = Dying()
    dying.dies_in = 2
    model, live = make(dying)
    kept = Checkpoints(tmp_path / "kept", model, every=0)
    assert kept.resume() == 0
    with pytest.raises(Killed):
        model.run(after_round=kept)
    assert model.round == 1
    live.engine.close()

    again = Dying()
    model, live = make(again)
    kept = Checkpoints(tmp_path / "kept", model, every=0)
    assert kept.resume() == 1
    assert model.run(after_round=kept).rounds.equals(result.rounds)
    assert live.table().equals(all_replies.table())
    assert live.asked == all_replies.asked
    assert again.calls == 2 and dying.prompts + again.prompts == straight.prompts
    assert (tmp_path / "journal").stat().st_size < 100  # all of it is in checkpoints


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


def test_requests_and_dice_need_no_state():
    model = market()
    for round in (0, 13, 5, 5):
        np.testing.assert_array_equal(model.arrivals.of(round), market().arrivals.of(round))
        drawn = market().dice.generator(round).random(4)
        np.testing.assert_array_equal(model.dice.generator(round).random(4), drawn)
        np.testing.assert_array_equal(model.dice.uniforms(round)[:4], drawn)


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


def begun(folder, at=(3, 6, 9)):
    """A folder with checkpoints at these rounds, of which the last two are kept."""
    model = market()
    kept = Checkpoints(folder, model)
    for k in at:
        model.run(rounds=k - model.round)
        kept.write()
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_checkpoints_are_kept_and_all_rows(tmp_path):
    assert begun(tmp_path) == [
        "checkpoint-6.json", "checkpoint-9.json",
        "rounds-0-3.npy", "rounds-3-6.npy", "rounds-6-9.npy", "state-6.npz", "state-9.npz",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["checkpoint-9.json", "state-9.npz", "rounds-6-9.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(name, damage, tmp_path):
    begun(tmp_path)
    spoil(tmp_path / name, damage)
    said, model = [], market()
    kept = Checkpoints(tmp_path, model, say=said.append)
    assert kept.resume() == 6
    if name == "checkpoint-9.json" and damage == "gone":
        assert not said  # as if it had never been written
    else:
        assert len(said) == 1 and name in said[0] and "the checkpoint before it is whole" in said[0]
    assert not list(tmp_path.glob("*-9.*"))
    whole = market()
    whole.run()
    model.run(after_round=kept)
    assert left_behind(model) == left_behind(whole)
    assert (
        stopped(tmp_path, market, ROUNDS).ledger.rows().tobytes() == whole.ledger.rows().tobytes()
    )


def spoil(path, damage):
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
        return
    if damage == "flip":
        content[len(content) // 2] ^= 1
    kept = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
    path.write_bytes(content[:kept])


def test_where_no_checkpoint_is_whole_it_says_so(tmp_path):
    begun(tmp_path)
    spoil(tmp_path / "rounds-0-3.npy", "flip")
    with pytest.raises(BadInput, match=r"holds no whole checkpoint \(checkpoint-9.json: rounds-0-"):
        Checkpoints(tmp_path, market()).resume()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, r"another seed \(0 there, 1 here\)"),
        ({"pool": OTHER_POOL}, "another pool of replies"),
        ({"mechanism": Mosaic(0.31)}, r"another mechanism \(Mosaic\(tau=0.3"),
        ({"mechanism": make_mechanism("vcg")}, "another mechanism"),
        ({"rounds": 15}, r"another number of rounds \(14 there, 15 here\)"),
        ({"learners": ("hedge", "gradient")}, "another population"),
    ],
    ids=["seed", "pool", "parameters", "mechanism", "rounds", "learners"],
)
def test_a_checkpoint_of_another_run_is_refused(other, said, tmp_path):
    before = begun(tmp_path)
    with pytest.raises(BadInput, match=said + ".*; go on with that one, or remove .* to begin"):
        Checkpoints(tmp_path, market(**other)).resume()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_other_code_and_other_schemas_are_refused(tmp_path, monkeypatch):
    begun(tmp_path)
    made = checkpoint.made_with()
    for what in ("version of numpy", "version of botorch", "source code of admarket"):
        assert what in made
        monkeypatch.setattr(checkpoint, "made_with", lambda what=what: {**made, what: "other"})
        with pytest.raises(BadInput, match=f"another {what}"):
            Checkpoints(tmp_path, market()).resume()
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    with pytest.raises(BadInput, match="has schema 1, this version reads 2"):
        Checkpoints(tmp_path, market()).resume()


def test_no_pickle_is_read(tmp_path):
    """Even where all checksums are right."""
    begun(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    commit = tmp_path / "checkpoint-9.json"
    sound = commit.read_bytes()
    for name in ("state-9.npz", "rounds-6-9.npy"):
        path = tmp_path / name
        original = path.read_bytes()
        for content in (pickle.dumps(Evil()), pickled(tmp_path / "array.npy", Evil())):
            path.write_bytes(content)
            sealed = json.loads(sound)
            for each in (sealed["body"]["state"], *sealed["body"]["parts"]):
                if each["file"] == name:
                    each["sha256"] = checkpoint._digest(content)
            commit.write_bytes(checkpoint._sealed(sealed["body"]))
            with pytest.raises(BadInput, match="remove it to begin anew"):
                Checkpoints(tmp_path, market()).resume()
        path.write_bytes(original)
    assert not (tmp_path / "hacked").exists()


def pickled(path, thing):
    array = np.empty(1, dtype=object)
    array[0] = thing
    np.save(path, array, allow_pickle=True)
    return path.read_bytes()


def test_what_cannot_be_written_stops_the_run_and_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    before = begun(folder)
    model = market()
    kept = Checkpoints(folder, model)
    kept.resume()
    model.run(rounds=2)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(Stopped, match=r"No space left on device\); .*it goes on at round 9"):
        kept.write()
    monkeypatch.undo()
    assert set(before) <= {path.name for path in folder.iterdir()}
    assert stopped(folder, market, 11).round == 11
    (tmp_path / "file").touch()
    with pytest.raises(Stopped, match="cannot write"):
        kept = Checkpoints(tmp_path / "file", model)
        kept.write()


def test_nothing_that_does_not_balance_is_kept(tmp_path):
    model = market()
    kept = Checkpoints(tmp_path, model)
    for _ in range(5):
        model.step()
    model.ledger._means[3] += 1.0
    with pytest.raises(Unbalanced, match="round 3"):
        kept.write()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_checkpoints_come_by_time_and_by_size_and_at_the_end(tmp_path, monkeypatch):
    def written(every, rows=10**6):
        folder = tmp_path / f"{every}-{rows}"
        model = market()
        kept = Checkpoints(folder, model, every=every)
        kept._most = rows
        model.run(after_round=kept)
        return [json.loads(path.read_text())["body"]["parts"][-1] for path in folder.glob("c*")]

    assert [part["file"] for part in written(1e9)] == ["rounds-0-14.npy"]
    by_size = sorted(part["file"] for part in written(1e9, 6))
    assert by_size == ["rounds-12-14.npy", "rounds-6-12.npy"]
    monkeypatch.setattr(checkpoint, "SHARE", np.inf)
    assert sorted(part["file"] for part in written(0)) == ["rounds-12-13.npy", "rounds-13-14.npy"]
    assert len(list((tmp_path / "0-1000000").glob("rounds-*"))) == ROUNDS

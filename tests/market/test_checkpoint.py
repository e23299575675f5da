"""A market that is stopped after any round goes on elsewhere, to the same bytes."""

from dataclasses import replace
from types import SimpleNamespace as Record

import numpy as np
import pytest

from agents.learners import LEARNERS
from market.checkpoint import Checkpoints
from market.model import MarketModel
from mechanisms.errors import BadInput
from mechanisms.llm.journal import Journaled
from mechanisms.mosaic import Mosaic
from tests.market import test_iamfm, test_live
from tests.market.stopping import ROUNDS, left_behind, market, stopped
from tests.mechanisms.leader import Lead, Leader


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


def test_requests_and_dice_need_no_state():
    model = market()
    for round in (0, 13, 5, 5):
        np.testing.assert_array_equal(model.arrivals.of(round), market().arrivals.of(round))
        drawn = market().dice.generator(round).random(4)
        np.testing.assert_array_equal(model.dice.generator(round).random(4), drawn)
        np.testing.assert_array_equal(model.dice.uniforms(round)[:4], drawn)

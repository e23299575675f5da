"""A small market, stopped after any round and gone on with in a new one."""

from types import SimpleNamespace as Record

import numpy as np

from market.checkpoint import Checkpoints
from market.model import MarketModel
from market.packing import pack
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool

N, ROUNDS = 5, 14
POOL = ReplyPool.synthetic(12, 8, 3, np.random.default_rng(1), advertisers=N)


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

"""A small market as a stand-in for `market.Scenario`, with synthetic replies."""

from types import SimpleNamespace as Record

import numpy as np

from market.model import MarketModel
from mechanisms.pool import ReplyPool

N = 5


def make_pool(seed=1):
    return ReplyPool.synthetic(30, 10, 3, np.random.default_rng(seed), advertisers=N)


def make_scenario(rounds=25, replications=3, learners=("hedge",), mechanism="mosaic", **changes):
    """A stand-in with the fields of `market.Scenario` that the model reads."""
    specs = []
    for i in range(N):
        given = learners[i % len(learners)]
        name, parameters = given if isinstance(given, tuple) else (given, {})
        specs.append(
            Record(
                objective="value" if i % 2 else "utility",
                value=1.0 + 0.2 * i,
                target_roi=1.5 if i % 2 else None,
                budget=changes.get("budget"),
                learner=Record(name=name, parameters=parameters),
            )
        )
    return Record(
        rounds=rounds,
        requests_per_round=4,
        replications=replications,
        mechanism=Record(name=mechanism, parameters={"tau": 0.3} if mechanism == "mosaic" else {}),
        advertisers=specs,
        replies_for=lambda *_: (make_pool(), None),
    )


def run(seed=0, **changes):
    return MarketModel(make_scenario(**changes), seed).run()

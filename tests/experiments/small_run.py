"""A small market, run once, with texts as a recorded pool has them, and a hostile title."""

from functools import cache
from types import SimpleNamespace as Record

import numpy as np
import polars as pl

from agents.learners.base import Population
from experiments.best_response import best_responses
from market.model import MarketModel
from market.result import Result
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

N = 6
HOSTILE = "<script>alert(1)</script>"
TITLES = ["Alpha Bed", "Beta Tea", HOSTILE, "Cost $5 or $6", "Epsilon", "Zeta"]
MECHANISMS = {"mosaic": {"tau": 0.3}, "llm-auction-ideal": {"tau": 0.3}}
VM = np.arange(N) % 2 == 1
PEOPLE = Population(
    np.linspace(1, 2, N), VM, np.where(VM, 1.5, 1.0), np.full(N, np.inf)
)  # fmt: skip


def mechanism(name):
    return make_mechanism(name, **MECHANISMS[name])


@cache
def pool():
    bare = ReplyPool.synthetic(8, 6, 3, np.random.default_rng(0), advertisers=N)
    B, M, _ = bare.shape
    texts = []
    for b, j in np.ndindex(B, M):
        shown = [int(i) for i in bare.ads[b][bare.exposure[b, j]]]
        texts.append("Hello. " + "".join(f"See @{TITLES[i]}@[Ad-{i}] now. " for i in shown))
    requests = pl.DataFrame(
        {
            "request": range(B),
            "query_id": [f"Query-{b}" for b in range(B)],
            "query": [f"What about {b}? <b>bold</b>" for b in range(B)],
            "user_id": ["User-1"] * B,
            "user": ["A gardener"] * B,
            "ad_ids": [[f"Ad-{i}" for i in row] for row in bare.ads],
            "ad_titles": [[TITLES[i] for i in row] for row in bare.ads],
        }
    )
    replies = pl.DataFrame(
        {
            "request": np.repeat(np.arange(B), M),
            "reply": np.tile(np.arange(M), B),
            "condition": ["context"] * (B * M),
            "text": texts,
        }
    )
    return ReplyPool.from_arrays(
        bare.ctr,
        quality=bare.quality,
        ads=bare.ads,
        exposure=bare.exposure,
        num_advertisers=N,
        requests=requests,
        replies=replies,
        manifest={"source": "recorded", "model": "smollm2-135m", "hostile": HOSTILE},
    )


@cache
def result(replications=3, rounds=60):
    specs = [
        Record(
            objective="value" if VM[i] else "utility",
            value=float(PEOPLE.values[i]),
            target_roi=1.5 if VM[i] else None,
            budget=None,
            learner=Record(name="pacing" if VM[i] else "hedge", parameters={}),
        )
        for i in range(N)
    ]
    runs = []
    for name in MECHANISMS:
        scenario = Record(
            rounds=rounds, requests_per_round=4, replications=replications, advertisers=specs
        )
        model = MarketModel(scenario, 0, pool=pool(), mechanism=mechanism(name), titles=TITLES)
        runs.append(model.run())
    return Result.concat(runs)


@cache
def best():
    return pl.concat(
        best_responses(mechanism(name), pool(), PEOPLE).labelled(name) for name in MECHANISMS
    )

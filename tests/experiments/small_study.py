"""A study of MOSAIC on a world whose reply space is known, without an LLM."""

from dataclasses import replace

import numpy as np
import polars as pl

from experiments.reproduce import mosaic, mosaic_measures
from experiments.reproduce.mosaic_misreports import misreports
from market.scenario import Scenario
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool

VALUES = np.linspace(1, 3, 6)
REQUESTS, SPACE = 12, 300
FORMS = {
    "clicks": (VALUES, Mosaic(0.1)),
    "log-ratio": (np.ones(6), Mosaic(4.0, reward="log-ratio")),
}
PROMPTS = {
    "reference": np.array([40.0]),
    "advertiser": np.array([60.0]),
    "context": np.linspace(0, 160, 9),
}


def world(seed=0, requests=REQUESTS):
    """All replies there are, weighed by the reference; some of them show ads, few are likely."""
    rng = np.random.default_rng(seed)
    space = ReplyPool.synthetic(requests, SPACE, 4, rng, advertisers=6)
    likely = rng.normal(size=(requests, SPACE)) - 1.5 * space.exposure.sum(2)
    log_ref = likely - np.log(np.exp(likely).sum(1, keepdims=True))
    ratios = rng.normal(0, 1, space.shape) + 2 * space.exposure
    ads = ReplyPool.synthetic(requests, 2, 4, np.random.default_rng(99), advertisers=6).ads
    return replace(space, log_ref=log_ref, ads=ads, extras={"log_ratios": ratios})


def pool(space, M, seed, boost=0.0):
    """M replies drawn where replies that show ads are `boost` nats likelier than the reference."""
    B = space.shape[0]
    rng = np.random.default_rng([seed, 5])
    log_gen = space.log_ref + boost * (space.exposure.sum(2) > 0)
    log_gen = log_gen - np.log(np.exp(log_gen).sum(1, keepdims=True))
    picked = np.stack([rng.choice(SPACE, size=M, p=np.exp(row)) for row in log_gen])
    b = np.arange(B)[:, None]
    return ReplyPool.from_arrays(
        space.ctr[b, picked],
        space.log_ref[b, picked],
        log_gen[b, picked],
        space.quality[b, picked],
        space.ads,
        exposure=space.exposure[b, picked],
        num_advertisers=6,
        extras={"log_ratios": space.extras["log_ratios"][b, picked]},
        manifest={"source": "synthetic"},
    )


def converged(pools, truth, sizes=(1, 8, 32), draws=12):
    """The frame of both forms of reward."""
    rng = np.random.default_rng(0)
    return pl.concat(
        mosaic_measures.convergence(
            pools, truth, weights, mechanism, sizes, rng, draws
        ).with_columns(reward=pl.lit(reward))
        for reward, (weights, mechanism) in FORMS.items()
    )


def small_study(requests=REQUESTS):
    space = world(requests=requests)
    boosts = {"reference": 0.0, "guided": 1.0, "context": 2.5, "mixture": 1.5}
    pools = {way: pool(space, 32, k, boosts[way]) for k, way in enumerate(mosaic.WAYS)}
    pools["truth"] = truth = pool(space, 2000, 9, 1.5)
    ways = {way: pools[way] for way in mosaic.WAYS}
    offsets, lies = [], []
    for reward, (weights, mechanism) in FORMS.items():
        label = pl.lit(reward).alias("reward")
        found = mosaic_measures.offsets(truth, weights, mechanism.tau, reward)
        offsets.append(found.with_columns(label))
        rng = np.random.default_rng(1)
        found = misreports(pools["guided"], weights, mechanism, rng)
        lies.append(found.with_columns(label))
    return mosaic.Study(
        scenario=Scenario.from_yaml("mosaic"),
        seed=0,
        pools=pools,
        convergence=converged(ways, truth, (1, 2, 4, 8, 16, 32, 64)),
        offsets=pl.concat(offsets),
        temperatures=mosaic_measures.temperatures(truth, VALUES, (0.02, 0.1, 0.2, 0.5, 2.0)),
        misreports=pl.concat(lies),
        tokens=mosaic_measures.tokens_per_auction(PROMPTS, 60.0, (1, 5, 10, 20), (1, 2, 4, 8)),
        seconds={"replies": 1.0, "measures": 2.0},
    )

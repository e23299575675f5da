"""The results folder of the small market, as `admarket run` leaves it, without its page."""

import json

import numpy as np
import polars as pl
import yaml

from experiments.learned import gains_of
from experiments.report import pool_measures
from experiments.samples import sample_replies, save_samples
from tests.experiments import small_run


def write(folder, *, run=None, pool=None, scenario=None, manifest=None, without=()):
    """Files of a run in `folder`, but those in `without`; settings and provenance may be changed.

    `run` and `pool` are those of `small_run` by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run, pool = run or small_run.result(), pool or small_run.pool()
    rounds = int(run.rounds["round"].max()) + 1
    replications = run.rounds["replication"].n_unique()
    bids, rng = small_run.PEOPLE.truthful_bids, np.random.default_rng(0)
    samples = {
        name: sample_replies(pool, small_run.mechanism(name), bids, rng, 2)
        for name in small_run.MECHANISMS
    }
    run.save(folder)
    small_run.best().write_parquet(folder / "best_responses.parquet")
    pl.concat(
        gains_of(
            run.advertisers.filter(pl.col("mechanism") == name),
            small_run.mechanism(name),
            pool,
            small_run.PEOPLE,
        )
        for name in small_run.MECHANISMS
    ).write_parquet(folder / "gains.parquet")
    save_samples(samples, folder / "samples.json")
    settings = {
        "name": "small",
        "rounds": rounds,
        "requests_per_round": 4,
        "replications": replications,
        "environment_seed": 0,
        "requests": {"queries": 8, "ads": 3},
        "replies": {"per_request": 6},
        "mechanism": {"name": "mosaic", "parameters": {"tau": 0.3}},
        "population": [{"objective": "utility", "count": 6}],
    }
    (folder / "scenario.yaml").write_text(yaml.safe_dump(settings | (scenario or {})), "utf-8")
    provenance = {
        "seed": 0,
        "pool_hash": pool.content_hash,
        "replies": pool.manifest["source"],
        "pool": dict(pool.manifest),
        "pools": [
            {
                "mechanisms": list(small_run.MECHANISMS),
                "measures": pool_measures(pool),
                "manifest": dict(pool.manifest),
            }
        ],
        "versions": {"numpy": "2.0"},
    }
    (folder / "manifest.json").write_text(json.dumps(provenance | (manifest or {})), "utf-8")
    for name in without:
        (folder / name).unlink()
    return folder

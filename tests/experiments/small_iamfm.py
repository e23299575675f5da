"""A study of IAMFM whose figures are made up, so that what is concluded from them is known."""

import numpy as np
import polars as pl

from experiments.iamfm.market import MECHANISMS
from experiments.iamfm.searches import BASELINES, CONTENDERS, MODEL
from experiments.iamfm.worlds import Synthetic
from experiments.reproduce.iamfm import FEW, RECORDED, SYNTHETIC, Sizes, Study
from market.result import Result
from market.scenario import Scenario
from mechanisms.iamfm.synthetic import SyntheticSettings
from mechanisms.pool import ReplyPool

BUDGETS = (1e3, 2e3, 4e3, 8e3, 16e3)
SHARES = (0.25, 0.5, 1.0)
NUMBERS = (3, FEW, 7)


def welfare(lead=0.1, slope=0.0, seeds=20):
    """Instantiations ahead of baselines by `lead`, elimination of the model by `slope` x budget.

    The budget is counted from the middle one, in powers of two: the two cross there.
    """
    rng, rows = np.random.default_rng(0), []
    for world in (SYNTHETIC, RECORDED):
        for seed in range(seeds):
            common = rng.normal()
            for x, budget in enumerate(BUDGETS):
                for name, each in CONTENDERS.items():
                    mean = 10 + common + 0.1 * x + (lead if name not in BASELINES else 0)
                    if name not in BASELINES and each.kind != MODEL:
                        mean += slope * (x - 2.2)
                    rows.append(
                        {
                            "world": world,
                            "method": name,
                            "budget": budget,
                            "seed": seed,
                            "welfare": mean + 0.01 * rng.normal(),
                            "optimum": 12.0 + common,
                        }
                    )
    return pl.DataFrame(rows).with_columns(
        share=pl.col("welfare") / pl.col("optimum"), regret=pl.col("optimum") - pl.col("welfare")
    )


def payments(factor=3.0, growth=0.0, seeds=20):
    """ACO has 85 % of naive re-optimisation's error at 1 / (factor + growth·n) of its tokens."""
    rng, rows = np.random.default_rng(1), []
    for n in NUMBERS:
        for seed in range(seeds):
            ways = (("naive", 1.0, 1.0), ("aco", factor + growth * n, 0.85), ("none", 1.0, 1.0))
            for way, speed, level in ways:
                noise = level * (1 + 0.1 * rng.normal())
                for share in SHARES if way != "none" else (0.0,):
                    tokens = share * n * 1e3
                    rows.append(
                        {
                            "n": n,
                            "seed": seed,
                            "way": way,
                            "share": share,
                            "allowance": tokens,
                            "extra": tokens / speed,
                            "error": noise / (1 + tokens / 1e3),
                            "fixed_error": noise / (1 + tokens / 1e3),
                            "exact": 2.0,
                        }
                    )
    return pl.DataFrame(rows)


def misreports(use=0.5, over=-0.01, count=200):
    """Gains of at most `use` times the bound; charges that exceed values by `over` at most."""
    rng = np.random.default_rng(2)
    error = rng.exponential(0.1, count)
    share = rng.uniform(-1, use, count)
    share[0] = use
    return pl.DataFrame(
        {
            "seed": np.arange(count),
            "n": 5,
            "gain": 2 * error * share,
            "epsilon": error,
            "charge_over_value": over - rng.exponential(0.1, count) * (np.arange(count) > 0),
            "lump_over_value": 0.1,
            "scale": 1.0,
        }
    )


def exposure(step=0.1, requests=12):
    rng, rows = np.random.default_rng(3), []
    for way in ("recorded, exact", "guided, live"):
        for others in (0, 1):
            for request in range(requests):
                own = 0.05 * rng.normal()
                for strength in range(3):
                    shown = 0.3 + own + step * strength + 0.001 * rng.normal()
                    rows.append((way, others, request, strength, shown))
    names = ["way", "others", "request", "strength", "exposure"]
    return pl.DataFrame(rows, schema=names, orient="row")


def market(over=-0.1, rounds=8, replications=3):
    rng = np.random.default_rng(4)
    totals, people = [], []
    for name in MECHANISMS:
        for r in range(replications):
            for t in range(rounds):
                key = {"mechanism": name, "replication": r, "round": t}
                noise = 0.01 * rng.normal(size=3)
                amounts = dict(
                    zip(("revenue", "welfare", "user_satisfaction"), 0.5 + noise, strict=True)
                )
                totals.append(key | amounts)
                for i in range(4):
                    kind = "utility" if i < 2 else "value"
                    people.append(
                        key
                        | {
                            "advertiser": i,
                            "title": f"Ad {i}",
                            "objective": kind,
                            "value": 2.0,
                            "target_roi": 1.0 if kind == "utility" else 1.25,
                            "bid": 1.5 + 0.1 * i,
                            "itctr": 0.2,
                            "payment": (1.5 + 0.1 * i) * 0.2 + over,
                        }
                    )
    return Result(pl.DataFrame(totals), pl.DataFrame(people), {})


def small_study(**changes):
    parts = {
        "scenario": Scenario.from_yaml("default"),
        "seed": 0,
        "sizes": Sizes(
            seeds=20,
            budgets=((SYNTHETIC, BUDGETS), (RECORDED, BUDGETS)),
            advertisers=NUMBERS,
            allocation=1e3,
            payment_seeds=20,
            misreports=200,
            exact=12,
        ),
        "pool": ReplyPool.synthetic(6, 8, 3, np.random.default_rng(5), advertisers=4),
        "worlds": {
            SYNTHETIC: Synthetic(SyntheticSettings(advertisers=3)),
            RECORDED: Synthetic(SyntheticSettings(advertisers=4)),
        },
        "support": {
            "effective_sample_size_min": 2.5,
            "effective_sample_size_median": 7.0,
            "effective_sample_size_of_all_strongest": 4.0,
        },
        "welfare": welfare(),
        "payments": payments(),
        "misreports": misreports(),
        "exact": pl.DataFrame(
            {"world": [SYNTHETIC] * 12, "seed": range(12), "difference": 1e-16, "optimal": True}
        ),
        "exposure": exposure(),
        "market": market(),
        "seconds": {"searches": 1.0, "wall": 0.5},
    }
    return Study(**(parts | changes))

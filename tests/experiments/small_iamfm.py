"""A study of IAMFM whose figures are made up, so that what is concluded from them is known."""

import numpy as np
import polars as pl

from experiments.iamfm.market import ARMS
from experiments.iamfm.other_bids import FACTORS as TRIED
from experiments.iamfm.ranges import ODDS, RUNGS
from experiments.iamfm.searches import BASELINES, CONTENDERS, ELIMINATION, MODEL
from experiments.iamfm.shading import EXACT, FACTORS
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


def payments(factor=3.0, growth=0.0, seeds=20, none=1.0):
    """ACO has 85 % of the error of running again at 1 / (factor + growth·n) of its tokens.

    Common pairs are of no use; without tokens the error is `none` times what running again starts
    from.
    """
    rng, rows = np.random.default_rng(1), []
    for world, n in (*((SYNTHETIC, n) for n in NUMBERS), (RECORDED, 4)):
        for seed in range(seeds):
            speed = factor + growth * n
            ways = (
                ("naive", 1.0, 1.0), ("naive-common", 1.0, 1.2), ("aco", speed, 0.85),
                ("none", 1.0, none),
            )  # fmt: skip
            for way, speed, level in ways:
                noise = level * (1 + 0.1 * rng.normal())
                for share in SHARES if way != "none" else (0.0,):
                    tokens = share * n * 1e3
                    rows.append(
                        {
                            "world": world,
                            "n": n,
                            "seed": seed,
                            "way": way,
                            "share": share,
                            "allowance": tokens,
                            "extra": tokens / speed,
                            "error": noise / (1 + tokens / 1e3),
                            "range_error": noise / (1 + tokens / 1e3),
                            "fixed_error": noise / (1 + tokens / 1e3),
                            "bias": 0.1 * noise,
                            "fixed_bias": -0.1 * noise,
                            "exact": 2.0,
                            "due": 3.0,
                            "regret": 0.1,
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
            "world": SYNTHETIC,
            "kind": ELIMINATION,
            "seed": np.arange(count),
            "n": 5,
            "gain": 2 * error * share,
            "epsilon": error,
            "charge_over_value": over - rng.exponential(0.1, count) * (np.arange(count) > 0),
            "lump_over_value": 0.1,
            "scale": 1.0,
        }
    )


def small_misreports(gain=-0.1, seeds=20):
    """Every small misreport gains `gain` of the truthful utility of 0.5 on average."""
    rng = np.random.default_rng(6)
    return pl.DataFrame(
        [
            {
                "world": SYNTHETIC,
                "method": method,
                "seed": seed,
                "factor": factor,
                "gain": 0.5 * (mean + 0.01 * rng.normal()),
                "utility": 0.5,
            }
            for method, mean in (("successive halving", gain), (EXACT, -0.2))
            for seed in range(seeds)
            for factor in FACTORS
        ]
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
    for name in ARMS:
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


def other_bids(shading=0.01, periods=6):
    """Told that another bid loses; shading gains `shading` when planned anew."""
    rows = [
        {"seed": k, "advertiser": i, "factor": factor, "utility": 0.2, "told": -0.02,
         "replanned": shading if factor < 1 else -0.02}
        for k in range(periods) for i in range(2) for factor in TRIED
    ]  # fmt: skip
    return pl.DataFrame(rows)


def ranges():
    """Every restriction costs 0.125 money; larger odds are better."""
    rows = [
        {"factor": factor, "odds": [0.1 * factor, 0.4 * factor], "range": name,
         "welfare": 1 + factor + 0.125 * k}
        for factor in ODDS for k, name in enumerate(RUNGS)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def small_study(**changes):
    parts = {
        "scenario": Scenario.from_yaml("default"),
        "seed": 0,
        "sizes": Sizes(
            seeds=20,
            budgets=((SYNTHETIC, BUDGETS), (RECORDED, BUDGETS)),
            advertisers=NUMBERS,
            allocation=1e3,
            payment_seeds=(20, 20, 20),
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
        "small_misreports": small_misreports(),
        "exact": pl.DataFrame(
            {"world": [SYNTHETIC] * 12, "seed": range(12), "difference": 1e-16, "optimal": True}
        ),
        "exposure": exposure(),
        "market": market(),
        "other_bids": other_bids(),
        "ranges": ranges(),
        "seconds": {"searches": 1.0, "wall": 0.5},
    }
    return Study(**(parts | changes))

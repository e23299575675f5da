"""`admarket reproduce mosaic`: the questions of MOSAIC's experiments, on replies of our own LLM.

(a) How fast does the allocation approach the optimal reply distribution as candidates M grow, by
    way of writing them? (b) What do offset payments do to revenue, and does utility follow the
contribution to welfare? (c) What does tau do to users? (d) Does any misreport gain? (e) What does
an auction cost in LLM tokens?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from experiments.reproduce import mosaic_measures as measures
from market.environment import make_pool, make_requests
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.mosaic import Mosaic
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Request
from mechanisms.recording.conditions import prompt

WAYS = ("reference", "guided", "context", "mixture")
TRUTH = 3
"""How many times as many candidates stand for the whole reply space."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
TAUS = tuple(float(tau) for tau in np.geomspace(0.02, 2.0, 11).round(4))
COSTED_M, COSTED_N = (1, 2, 5, 10, 20, 50), (1, 2, 4, 8)


@dataclass(frozen=True, eq=False)
class Study:
    """All that was measured, and on what.

    Attributes:
        scenario: what was recorded; `seed` of what is random in the analysis.
        pools: candidates by way of writing, and `truth`.
        convergence, offsets, temperatures, misreports, tokens: see `mosaic_measures`; the first two
            have a column `reward`.
    """

    scenario: Scenario
    seed: int
    pools: dict[str, ReplyPool]
    convergence: pl.DataFrame
    offsets: pl.DataFrame
    temperatures: pl.DataFrame
    misreports: pl.DataFrame
    tokens: pl.DataFrame


def study(scenario: Scenario, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Study:
    """Record what is needed (or reuse it) and measure.

    Raises:
        BadInput: a scenario whose mechanism is not mosaic, or without an LLM.
    """
    if scenario.mechanism.name != "mosaic":
        raise BadInput(
            f"scenario {scenario.name} runs {scenario.mechanism.name}; give one of mosaic"
        )
    if scenario.replies.source == "synthetic":
        raise BadInput(f"scenario {scenario.name} has synthetic replies; MOSAIC is about an LLM's")
    pools = _pools(scenario, say)
    values = np.array([spec.value for spec in scenario.advertisers])
    tau = float(scenario.mechanism.parameters["tau"])
    rng = np.random.default_rng([seed, 7])
    truth, guided = pools["truth"], pools["guided"]
    say("measuring: convergence, payments, tau, misreports, cost")
    ways = {way: pools[way] for way in WAYS}
    forms = {
        "clicks": (values, Mosaic(tau)),
        "log-ratio": (np.ones_like(values), Mosaic(log_ratio_tau(scenario), reward="log-ratio")),
    }
    convergence, offsets = [], []
    for reward, (weights, mechanism) in forms.items():
        label = pl.lit(reward).alias("reward")
        found = measures.convergence(ways, truth, weights, mechanism, SIZES, rng)
        convergence.append(found.with_columns(label))
        found = measures.offsets(truth, weights, mechanism.tau, reward)
        offsets.append(found.with_columns(label))
    return Study(
        scenario=scenario,
        seed=seed,
        pools=pools,
        convergence=pl.concat(convergence),
        offsets=pl.concat(offsets),
        temperatures=measures.temperatures(truth, values, TAUS),
        misreports=measures.misreports(guided, values, tau, rng),
        tokens=_tokens(scenario, guided),
    )


def log_ratio_tau(scenario: Scenario) -> float:
    """tau where rewards are log-ratios: n, the number of candidate ads.

    With weights a_i = 1, as in the paper, the optimum `π_ref·Π_i (π_i/π_ref)^(1/tau)` is then the
    geometric mean of the advertisers' LLMs.
    """
    return float(scenario.requests.ads)


def _pools(scenario: Scenario, say: Callable[[str], None]) -> dict[str, ReplyPool]:
    """The same requests, written to in every way; independent of each other.

    What stands for the whole reply space is a mixture, which holds what both prompts write.
    """
    spec = scenario.replies.model_dump() | {"context_probe": 0, "log_ratios": True}
    pools = {}
    for number, way in enumerate((*WAYS, "truth")):
        changes = {"generation": way}
        if way == "truth":
            changes = {"generation": "mixture", "per_request": TRUTH * spec["per_request"]}
        asked = scenario.with_(replies={**spec, **changes})
        pools[way] = make_pool(asked, say, salt=number + 1)
    return pools


def _tokens(scenario: Scenario, guided: ReplyPool) -> pl.DataFrame:
    """Cost of auctions from the lengths of real prompts and of the replies recorded."""
    most = min(max(COSTED_N), scenario.num_advertisers)
    wide = scenario.with_(requests={**scenario.requests.model_dump(), "ads": most})
    requests, _ = make_requests(wide)
    tokenizer = ChatTokenizer(scenario.replies.model)

    def length(kind: str, ads: int) -> float:
        asked = [_with_ads(request, ads) for request in requests]
        return float(np.mean([len(tokenizer.chat_tokens(prompt(kind, each))) for each in asked]))

    lengths: dict[str, Floats] = {
        "reference": np.array([length("reference", 0)]),
        "advertiser": np.array([length("advertiser:0", 1)]),
        "context": np.array([length("context", n) if n else 0.0 for n in range(most + 1)]),
    }
    reply = float(guided.replies["tokens"].mean())
    ads = [n for n in COSTED_N if n <= most]
    return measures.tokens_per_auction(lengths, reply, COSTED_M, ads)


def _with_ads(request: Request, count: int) -> Request:
    return replace(request, ads=request.ads[:count], advertisers=request.advertisers[:count])

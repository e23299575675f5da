"""`admarket reproduce mosaic`: the questions of MOSAIC's experiments, on replies of our own LLM.

(a) How fast does the allocation approach the optimal reply distribution as candidates M grow, by
    way of writing them? (b) What do offset payments do to revenue, and does utility follow the
contribution to welfare? (c) What does tau do to users? (d) Does any misreport gain? (e) What does
an auction cost in LLM tokens?
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl

from agents.users import Norms
from experiments.reproduce import mosaic_measures as measures
from experiments.reproduce.mosaic_misreports import misreports
from market.environment import LazyEngine, make_pool, make_requests, norms_of
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.mosaic import Mosaic
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Request
from mechanisms.recording.conditions import prompt

WAYS = ("reference", "guided", "context", "mixture")
TRUTH = 2
"""How many times as many candidates stand for the whole reply space."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""M, beside a recording's own."""
TAUS = tuple(float(tau) for tau in np.geomspace(0.02, 2.0, 11).round(4))
COSTED_M, COSTED_N = (1, 2, 5, 10, 20, 50), (1, 2, 4, 8)
LEAST = {"replies.per_request": 8, "requests.queries": 2, "requests.ads": 2, "advertisers": 4}


@dataclass(frozen=True, eq=False)
class Study:
    """All that was measured, and on what.

    Attributes:
        scenario: what was recorded; `seed` of what is random in the analysis.
        pools: candidates by way of writing, and `truth`.
        convergence, offsets, temperatures, misreports, tokens: see `mosaic_measures` and
            `mosaic_misreports`; all but temperatures and tokens have a column `reward`.
        seconds: wall time by what was done.
    """

    scenario: Scenario
    seed: int
    pools: dict[str, ReplyPool]
    convergence: pl.DataFrame
    offsets: pl.DataFrame
    temperatures: pl.DataFrame
    misreports: pl.DataFrame
    tokens: pl.DataFrame
    seconds: dict[str, float]


def study(scenario: Scenario, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Study:
    """Record what is needed (or reuse it) and measure.

    Raises:
        BadInput: a scenario that is not of truthful utility maximizers under MOSAIC as it is in the
            paper, is without an LLM, or too small.
    """
    _refuse(scenario)
    started = time.perf_counter()
    pools = _pools(scenario, say)
    recorded = time.perf_counter()
    say("measuring: convergence, payments, tau, misreports, cost")
    values = np.array([spec.value for spec in scenario.advertisers])
    tau = float(scenario.mechanism.parameters["tau"])
    rng = np.random.default_rng([seed, 7])
    truth, guided = pools["truth"], pools["guided"]
    ways = {way: pools[way] for way in WAYS}
    forms = {
        "clicks": (values, Mosaic(tau)),
        "log-ratio": (np.ones_like(values), Mosaic(log_ratio_tau(scenario), reward="log-ratio")),
    }
    convergence, offsets, lies = [], [], []
    for reward, (weights, mechanism) in forms.items():
        label = pl.lit(reward).alias("reward")
        found = measures.convergence(ways, truth, weights, mechanism, SIZES, rng)
        convergence.append(found.with_columns(label))
        found = measures.offsets(truth, weights, mechanism.tau, reward)
        offsets.append(found.with_columns(label))
        lies.append(misreports(guided, weights, mechanism, rng).with_columns(label))
    temperatures = measures.temperatures(truth, values, TAUS)
    tokens = _tokens(scenario, guided)
    return Study(
        scenario=scenario,
        seed=seed,
        pools=pools,
        convergence=pl.concat(convergence),
        offsets=pl.concat(offsets),
        temperatures=temperatures,
        misreports=pl.concat(lies),
        tokens=tokens,
        seconds={"replies": recorded - started, "measures": time.perf_counter() - recorded},
    )


def _refuse(scenario: Scenario) -> None:
    """Refuse what the study would silently leave out of account, or has too little of."""
    where, spec = f"scenario {scenario.name}", scenario.mechanism
    if spec.name != "mosaic":
        raise BadInput(f"{where} runs {spec.name}; give one of mosaic")
    defaults = {each.name: each.default for each in fields(Mosaic)}
    for name, given in spec.parameters.items():
        if name != "tau" and given != defaults[name]:
            raise BadInput(
                f"{where} sets {name}: {given} of mosaic, which the reproduction varies itself or "
                f"leaves at {defaults[name]}; drop it"
            )
    if scenario.replies.source == "synthetic":
        raise BadInput(f"{where} has synthetic replies; MOSAIC is about an LLM's")
    asked = scenario.requests
    sizes = (scenario.replies.per_request, asked.queries, asked.ads, scenario.num_advertisers)
    for (name, least), size in zip(LEAST.items(), sizes, strict=True):
        if size < least:
            raise BadInput(f"{where} has {name} {size}; the reproduction needs at least {least}")
    for group in scenario.population:
        if group.objective != "utility" or group.budget is not None:
            what = "budgets" if group.objective == "utility" else "value maximizers"
            raise BadInput(f"{where} has {what}; MOSAIC's advertisers are utility maximizers only")
        if group.learner.name != "truthful":
            raise BadInput(f"{where} has learner {group.learner.name}; MOSAIC's are truthful")


def log_ratio_tau(scenario: Scenario) -> float:
    """tau where rewards are log-ratios: n, the number of candidate ads.

    With weights a_i = 1, as in the paper, the optimum `π_ref·Π_i (π_i/π_ref)^(1/tau)` is then the
    geometric mean of the advertisers' LLMs.
    """
    return float(scenario.requests.ads)


def _pools(scenario: Scenario, say: Callable[[str], None]) -> dict[str, ReplyPool]:
    """The same requests, written to in every way; independent of each other.

    What stands for the whole reply space is a mixture, which holds what both prompts write. It is
    recorded first, and users judge all others by its norms: the same reply, the same clicks.
    """
    spec = scenario.replies.model_dump() | {"context_probe": 0, "log_ratios": True}
    engine = LazyEngine(scenario)

    def written(salt: int, norms: Norms | None, **changes: object) -> ReplyPool:
        asked = scenario.with_(replies={**spec, **changes})
        return make_pool(asked, say, salt=salt, norms=norms, engine=engine)

    large = TRUTH * scenario.replies.per_request
    truth = written(len(WAYS) + 1, None, generation="mixture", per_request=large)
    norms = norms_of(truth)
    pools = {way: written(k, norms, generation=way) for k, way in enumerate(WAYS, start=1)}
    return pools | {"truth": truth}


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

"""What a dashboard can play: a scenario, its recorded replies, and what may be changed in it.

No LLM is ever opened here. Replies are synthetic or come from the cache; those of the `default`
scenario that were not recorded yet give way to the synthetic market, and the page says so.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import polars as pl

from agents.learners.registry import LEARNERS
from experiments.best_response import best_responses
from experiments.report.records import Records
from experiments.run import population
from market.environment import LazyEngine, pools_of, titles
from market.model import MarketModel
from market.result import Result
from market.scenario import AdvertiserSpec, Named, Scenario
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.llm.weights import cache_dir
from mechanisms.pool import ReplyPool
from mechanisms.recording import load_pool
from mechanisms.registry import MECHANISMS, make_mechanism

AS_DESCRIBED = "scenario"
"""The choice of a learner that leaves to each advertiser the one that the scenario gives it."""
TAUS = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


class NotRecorded(BadInput):
    """The replies asked for would have to be written first."""


class RecordedOnly(LazyEngine):
    """Stands where an LLM would be opened, and refuses: recording takes minutes, or hours."""

    def open(self) -> NoReturn:
        """Refuse.

        Raises:
            NotRecorded: always.
        """
        name = self.scenario.name
        raise NotRecorded(
            f"the replies of scenario {name} are not recorded yet; `admarket record {name}` does "
            "it (minutes with a small LLM), or show `synthetic`, which needs none"
        )


@dataclass(frozen=True)
class Choice:
    """What can be changed on the page.

    Attributes:
        mechanism: its name.
        tau: weight of KL; None for a mechanism without.
        value_maximizers: how many of the advertisers maximise value.
        utility_learner, value_learner: how those of either objective bid.
        seed: of arrivals, dice and learners.
    """

    mechanism: str
    tau: float | None
    value_maximizers: int
    utility_learner: str = AS_DESCRIBED
    value_learner: str = AS_DESCRIBED
    seed: int = 0


@dataclass(frozen=True)
class Cast:
    """A scenario as far as a market reads it, with advertisers of its own."""

    rounds: int
    requests_per_round: int
    replications: int
    advertisers: tuple[AdvertiserSpec, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """A scenario with the replies that its mechanisms trade on.

    Attributes:
        scenario: as described.
        pools: by mechanism, all that can be chosen.
        seed: chosen at first.
        note: what the page should say of it; empty if nothing.
        closed: set when no more rounds are to be played.
    """

    scenario: Scenario
    pools: Mapping[str, ReplyPool]
    seed: int = 0
    note: str = ""
    closed: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, scenario: Scenario, say: Callable[[str], None] = lambda _: None) -> Stage:
        """The scenario's market, with every mechanism that can trade on recorded replies.

        Raises:
            BadInput: it wants replies anew in every round.
            NotRecorded: its replies are not in the cache.
        """
        if scenario.replies.source == "live":
            raise BadInput(
                f"scenario {scenario.name} has the LLM write anew in every round, which is too "
                "slow to watch; set replies.source to recorded"
            )
        named = {arm.name: make_mechanism(arm.name, **arm.parameters) for arm in scenario.arms}
        named |= {name: make_mechanism(name) for name in _of_any_replies() if name not in named}
        traded = pools_of(scenario, list(named.values()), say, RecordedOnly(scenario))
        return cls(scenario, dict(zip(named, traded, strict=True)))

    @classmethod
    def of_default(cls, say: Callable[[str], None] = lambda _: None) -> Stage:
        """The default market if its replies are recorded, else the synthetic one, with a note."""
        try:
            return cls.of(Scenario.from_yaml("default"), say)
        except NotRecorded:
            stage = cls.of(Scenario.from_yaml("synthetic"), say)
            note = (
                "Shown is the synthetic market, without an LLM: the replies of the default one are "
                "not recorded yet. `admarket record` writes them, in minutes."
            )
            return replace(stage, note=note)

    @classmethod
    def of_run(cls, run: Records) -> Stage | None:
        """The market of a finished run; None if its replies are not on this machine."""
        pools, scenario = pools_of_run(run), described(run)
        if scenario is None or set(pools) != {arm.name for arm in scenario.arms}:
            return None
        plain = [pools[name] for name in pools if name in _of_any_replies()]
        shared = {name: plain[0] for name in _of_any_replies() if plain}
        return cls(scenario, {**shared, **pools}, seed=run.manifest["seed"])

    @property
    def first(self) -> Choice:
        """The market as described."""
        return self.settled(
            Choice(
                self.scenario.mechanism.name,
                None,
                sum(spec.objective == "value" for spec in self.scenario.advertisers),
                seed=self.seed,
            )
        )

    @property
    def mechanisms(self) -> list[str]:
        """Names that can be chosen, those of the scenario first."""
        described = [arm.name for arm in self.scenario.arms]
        return described + [name for name in self.pools if name not in described]

    @property
    def learners(self) -> list[str]:
        """Names that can be chosen."""
        return [AS_DESCRIBED, *LEARNERS]

    def taus(self, name: str) -> list[float]:
        """What can be chosen under a mechanism; empty for one without tau."""
        own = self._parameters(name).get("tau")
        return [] if own is None else sorted({*TAUS, own})

    def settled(self, choice: Choice) -> Choice:
        """The choice with a tau that its mechanism has, or none."""
        taus = self.taus(choice.mechanism)
        if not taus:
            return replace(choice, tau=None)
        kept = choice.tau in taus
        return choice if kept else replace(choice, tau=self._parameters(choice.mechanism)["tau"])

    def mechanism(self, choice: Choice) -> Mechanism:
        """The mechanism chosen, else with the scenario's parameters or its own defaults."""
        given = self._parameters(choice.mechanism)
        if choice.tau is not None:
            given["tau"] = choice.tau
        return make_mechanism(choice.mechanism, **given)

    def cast(self, choice: Choice) -> Cast:
        """The advertisers chosen: those of the scenario, some with another objective or learner.

        The scenario's value maximizers are the first to be one, then the others by index. Who
        becomes one gets their mean target ROI, and the learner of the first group of its kind.
        """
        specs = self.scenario.advertisers
        order = sorted(range(len(specs)), key=lambda i: (specs[i].objective != "value", i))
        chosen = set(order[: choice.value_maximizers])
        return Cast(
            self.scenario.rounds,
            self.scenario.requests_per_round,
            self.scenario.replications,
            tuple(self._recast(spec, i in chosen, choice) for i, spec in enumerate(specs)),
        )

    def _recast(self, spec: AdvertiserSpec, values: bool, choice: Choice) -> AdvertiserSpec:
        objective = "value" if values else "utility"
        wanted = choice.value_learner if values else choice.utility_learner
        changes: dict[str, Any] = {"objective": objective}
        if spec.objective != objective:
            changes["target_roi"] = self._mean_target if values else 1.0
        given = spec.learner if spec.objective == objective else self._learners[objective]
        changes["learner"] = given
        if wanted not in (AS_DESCRIBED, given.name):
            changes["learner"] = Named(name=wanted)
        return spec.model_copy(update=changes)

    @cached_property
    def _mean_target(self) -> float:
        targets = [s.target_roi for s in self.scenario.advertisers if s.objective == "value"]
        return float(np.mean(targets)) if targets else 1.0

    @cached_property
    def _learners(self) -> dict[str, Named]:
        """By objective, that of the scenario's first group; else one that suits it."""
        found = {"utility": Named(name="hedge"), "value": Named(name="pacing")}
        return found | {g.objective: g.learner for g in reversed(self.scenario.population)}

    def _parameters(self, name: str) -> dict[str, Any]:
        given = {arm.name: arm.parameters for arm in self.scenario.arms}.get(name, {})
        tau = getattr(make_mechanism(name, **given), "tau", None)
        return {**given} if tau is None else {**given, "tau": tau}


class StagedMarket(MarketModel):
    """A market as Mesa's SolaraViz wants it: made of keyword parameters, reset by making it anew.

    Unlike others it may be stepped on when it is over, which does nothing: SolaraViz plays several
    rounds between two pictures. One thread steps it and others look at it; who looks holds its
    `lock`, so that it does not run ahead of its pictures.

    Args:
        stage: what is played on.
        mechanism, tau, value_maximizers, utility_learner, value_learner, seed: see `Choice`.
    """

    def __init__(
        self,
        stage: Stage,
        mechanism: str,
        tau: float | None,
        value_maximizers: int,
        utility_learner: str = AS_DESCRIBED,
        value_learner: str = AS_DESCRIBED,
        seed: int = 0,
    ) -> None:
        self.stage = stage
        choice = Choice(mechanism, tau, value_maximizers, utility_learner, value_learner, seed)
        self.choice = stage.settled(choice)
        self.lock = threading.RLock()
        pool = stage.pools[mechanism]
        super().__init__(
            stage.cast(self.choice),
            seed,
            pool=pool,
            mechanism=stage.mechanism(self.choice),
            titles=titles(pool),
        )

    def step(self) -> None:
        """Play a round, if there is one left."""
        with self.lock:
            if self.stage.closed.is_set():
                self.running = False
            elif self.round < self.scenario.rounds:
                super().step()
            self.steps = self.round  # Mesa counts calls

    @cached_property
    def best(self) -> pl.DataFrame:
        """Best responses, computed apart from the learners (`experiments.best_response`)."""
        platform, people = self.platform, population(self.scenario)
        found = best_responses(platform.mechanism.exact, platform.pool, people)
        return found.labelled(platform.mechanism.name)

    def result(self) -> Result | None:
        """Records of the rounds so far; None before the first."""
        with self.lock:
            return self.ledger.result() if self.round else None


def pools_of_run(run: Records) -> dict[str, ReplyPool]:
    """By mechanism, the replies that a finished run traded on, of those that can be had here.

    None of a run whose replies were written anew in every round: its recording is not what it
    traded on.
    """
    manifest, scenario = run.manifest, described(run)
    if manifest.get("replies") == "live":
        return {}
    wanted = manifest.get("pool_hash_by_mechanism")
    if not isinstance(wanted, dict):  # of an earlier version: one pool for all
        wanted = dict.fromkeys(run.labels, manifest.get("pool_hash"))
    if scenario is not None and scenario.replies.source == "synthetic":
        pool = scenario.make_pool()
        kept = {pool.content_hash: pool}
    else:
        kept = _recordings(set(wanted.values()))
    return {name: kept[hash] for name, hash in wanted.items() if hash in kept}


def described(run: Records) -> Scenario | None:
    """The scenario of a finished run; None if another version described it."""
    try:
        return Scenario.from_dict(dict(run.scenario))
    except BadInput:
        return None


def _recordings(wanted: set[str]) -> dict[str, ReplyPool]:
    """By content hash, the pools of the cache that can be read."""
    found: dict[str, ReplyPool] = {}
    for path in sorted((cache_dir() / "pools").glob("*/manifest.json")):
        try:
            held = json.loads(path.read_text("utf-8"))["content_hash"]
            if held in wanted and held not in found:
                found[held] = load_pool(path.parent)
        except (OSError, ValueError, TypeError, LookupError, BadInput):
            continue  # damaged, or of another version
    return found


def _of_any_replies() -> list[str]:
    """Mechanisms that trade on replies however written, and on nothing besides."""
    return [
        name
        for name, each in MECHANISMS.items()
        if each.generation is None and not each.short_replies
    ]

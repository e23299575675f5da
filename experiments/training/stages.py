"""The stages of training, each from where another ended (`admarket train`).

    warm-start   demonstrations of the format, whatever the bids
    distill      replies of the ideal rule over a recorded pool, under fresh bids
    irpo         Iterative Reward-Preference Optimisation
    online       policy gradients straight from clicks

A stage's folder holds `request.json` (what was asked for), `work/` (what a stopped run goes on
from), and at its end `policy/` (the Ad-LLM, for `AdLLM.load`) and `stage.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.provenance import where
from experiments.training.data import (
    POOL_TEMPERATURE,
    Split,
    training_pool,
    training_requests,
    users_by,
)
from market.environment import LazyEngine
from market.scenario import Scenario
from market.training import StageSpec, TrainingSpec
from mechanisms.errors import BadInput, instead
from mechanisms.llm.base import Engine
from mechanisms.llm.weights import identity
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.impressions import Impressions
from mechanisms.llm_auction.pctr import Embeddings
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.irpo import IRPO, IRPOSettings
from mechanisms.llm_auction.training.keeping import keep_text
from mechanisms.llm_auction.training.online import Online, OnlineSettings
from mechanisms.llm_auction.training.policy import LoRA, Policy
from mechanisms.llm_auction.training.sampling import Sampler
from mechanisms.llm_auction.training.streams import DISTILL, LOGS, WARM_START, seeded
from mechanisms.llm_auction.training.supervised import learn
from mechanisms.llm_auction.training.targets import Example, PoolTeacher
from mechanisms.llm_auction.training.trainer import Log, Schedule
from mechanisms.policies import Rules
from mechanisms.pool import ReplyPool

STAGES = ("warm-start", "distill", "irpo", "online")
Say = Callable[[str], None]


def train(
    scenario: Scenario,
    stage: str,
    seed: int,
    out: Path,
    start: Path | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Run one stage, or what is left of it; returns the folder of the trained Ad-LLM.

    Args:
        scenario: its `training` says how.
        stage: one of `STAGES`.
        seed: of all that is random.
        out: the stage's folder.
        start: the Ad-LLM to start from; None for the LLM as it is, which has not learned the format
            and so is refused for `irpo` and `online`.
        say: told what is going on.

    Raises:
        BadInput: an unknown stage, no start where one is needed, or a folder of another run.
    """
    if stage not in STAGES:
        raise BadInput(f"no stage {stage!r} of training; {instead(stage, STAGES)}")
    if start is None and stage in ("irpo", "online"):
        raise BadInput(
            f"{stage} starts from an LLM that writes the format; give --start, the policy folder "
            "of a warm start or a distillation"
        )
    spec = scenario.training or TrainingSpec()
    begun = AdLLM.load(start) if start is not None else untrained(scenario)
    _refuse_other_settings(begun, untrained(scenario), start)
    begun = replace(begun, temperature=spec.temperature)
    split = training_requests(scenario)
    _claim(scenario, stage, seed, out, begun, split)
    policy_folder, done = out / "policy", out / "stage.json"
    if done.exists():
        say(f"{stage}: done before, in {out}")
        return policy_folder
    work = Workshop.open(scenario, split, seed, say)
    lora = LoRA(spec.rank, spec.alpha, spec.first_layer) if spec.method == "lora" else None
    policy = Policy(begun, lora, seed)
    seen = RUNNERS[stage](work, policy, out / "work")
    record = {
        "stage": stage,
        "start": None if start is None else str(start),
        "seconds": round(sum(seen["phases"].values()), 1),
        **seen,
        "fingerprint": policy.fingerprint,
        "training": spec.model_dump(mode="json"),
        "seed": seed,
        **where(),
    }
    told = {key: record[key] for key in ("stage", "seconds", "fingerprint", "training")}
    earlier = list(begun.training.get("stages", ()))
    policy.save(
        policy_folder, {"scenario": scenario.name, "seed": seed, "stages": [*earlier, told]}
    )
    keep_text(json.dumps(record, indent=1) + "\n", done)
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in seen["phases"].items())
    say(f"{stage}: {phases}")
    return policy_folder


def untrained(scenario: Scenario) -> AdLLM:
    """The scenario's LLM, asked as its training says."""
    spec = scenario.training or TrainingSpec()
    return AdLLM(
        model=scenario.replies.model,
        style=PromptStyle(spec.layout, spec.bids, spec.ordered),
        rules=Rules(sentences=spec.sentences, mentions=spec.max_ads, max_tokens=spec.max_tokens),
        temperature=spec.temperature,
    )


def _refuse_other_settings(begun: AdLLM, wanted: AdLLM, start: Path | None) -> None:
    """A start that is asked otherwise than the scenario says would change what is said.

    The model of one whose weights were all trained is its own folder. At which temperature it is
    served is no matter: it is trained at the scenario's.
    """
    for name in ("model", "style", "rules"):
        there, asked = getattr(begun, name), getattr(wanted, name)
        if there != asked and not (name == "model" and begun.adapter is None):
            raise BadInput(f"{start} was trained with {name} {there}, the scenario has {asked}")


def _claim(
    scenario: Scenario, stage: str, seed: int, out: Path, begun: AdLLM, split: Split
) -> None:
    """Note what is asked for; a folder in which something else was asked for is left alone."""
    spec = scenario.training or TrainingSpec()
    told = [
        [r.query, r.user_id, r.user, [[ad.id, ad.title, ad.text, ad.tagline] for ad in r.ads]]
        for r in split.train
    ]
    asked = {
        "stage": stage,
        "replies": scenario.replies.model_dump(mode="json"),
        "training": spec.model_dump(mode="json"),
        "seed": seed,
        "start": begun.identity,
        "model": identity(begun.model),
        "requests": hashlib.sha256(json.dumps(told).encode()).hexdigest(),
    }
    file = out / "request.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != asked:
            raise BadInput(f"{out} holds another run of training; give another --out, or delete it")
        return
    out.mkdir(parents=True, exist_ok=True)
    keep_text(json.dumps(asked, indent=1) + "\n", file)


@dataclass(frozen=True, eq=False)
class Workshop:
    """What all stages of a scenario use."""

    scenario: Scenario
    spec: TrainingSpec
    split: Split
    pool: ReplyPool
    seed: int
    say: Say

    @classmethod
    def open(cls, scenario: Scenario, split: Split, seed: int, say: Say) -> Workshop:
        """With the recorded pool; users judge by its norms throughout."""
        pool = training_pool(scenario, split.train, split.num_ads, say)
        spec = scenario.training or TrainingSpec()
        return cls(scenario, spec, split, pool, seed, say)

    @property
    def reward(self) -> ResponseReward:
        """R."""
        return ResponseReward(
            user_weight=self.spec.reward.user_weight,
            max_ads=self.spec.max_ads,
            unfinished=self.spec.reward.unfinished,
        )

    def teacher(self, policy: Policy) -> PoolTeacher:
        """Draws from the recorded pool."""
        return PoolTeacher(policy, self.pool, self.split.train, self.spec.pool_beta, self.reward)

    def logs(self, viewers: int) -> Impressions:
        """Clicks on the recorded pool: what a platform has logged before it trains its LLM."""
        copies = {
            ad.id: f"{ad.title}. {ad.text}" for request in self.split.train for ad in request.ads
        }
        rng = seeded(self.seed, LOGS, 0)
        return Impressions.of_pool(self.pool, copies).drawn(self.pool.ctr, rng, viewers)

    def sampler(self) -> Sampler:
        """Has the policy write, through one engine whose adapter is exchanged."""
        reference = LazyEngine(self.scenario).open()
        return Sampler(reference, users_by(self.pool), _Writers(self.scenario), POOL_TEMPERATURE)

    def progress(self, steps: int) -> Callable[[Log], None]:
        """Says a line every tenth of the steps."""
        every = max(1, steps // 10)

        def say(row: Log) -> None:
            if (row["step"] + 1) % every == 0:
                self.say(f"step {int(row['step']) + 1} of {steps}: loss {row['loss']:.3f}")

        return say


def _warm_start(work: Workshop, policy: Policy, folder: Path) -> dict[str, Any]:
    draw = work.teacher(policy).demonstration
    return _supervised(work, policy, folder, work.spec.warm_start, draw, WARM_START)


def _distill(work: Workshop, policy: Policy, folder: Path) -> dict[str, Any]:
    draw = work.teacher(policy).distilled
    return _supervised(work, policy, folder, work.spec.distill, draw, DISTILL)


def _supervised(
    work: Workshop,
    policy: Policy,
    folder: Path,
    spec: StageSpec,
    draw: Callable[[np.random.Generator], Example],
    purpose: int,
) -> dict[str, Any]:
    schedule = Schedule(spec.steps, spec.batch, spec.lr)
    key = (work.seed, purpose)
    log = learn(policy, draw, schedule, folder, key, work.progress(spec.steps))
    return {"phases": {"train": round(sum(row["seconds"] for row in log), 1)}, "log": log}


def _irpo(work: Workshop, policy: Policy, folder: Path) -> dict[str, Any]:
    settings = IRPOSettings(**work.spec.irpo.model_dump())
    sampler = work.sampler()
    embeddings = None if settings.oracle else Embeddings(sampler.users.encoder)
    logs = None if settings.oracle else work.logs(settings.viewers)
    irpo = IRPO(
        policy,
        sampler,
        work.split.train,
        work.reward,
        embeddings,
        settings,
        folder,
        work.seed,
        logs,
    )
    epochs = irpo.run(work.say)
    return {"phases": _phases(epochs), "epochs": epochs}


def _online(work: Workshop, policy: Policy, folder: Path) -> dict[str, Any]:
    settings = OnlineSettings(**work.spec.online.model_dump())
    online = Online(
        policy, work.sampler(), work.split.train, work.reward, settings, folder, work.seed
    )
    iterations = online.run(work.say)
    return {"phases": _phases(iterations), "iterations": iterations}


RUNNERS: dict[str, Callable[[Workshop, Policy, Path], dict[str, Any]]] = {
    "warm-start": _warm_start,
    "distill": _distill,
    "irpo": _irpo,
    "online": _online,
}


def _phases(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by phase, summed over epochs."""
    names = list(dict.fromkeys(name for each in rounds for name in each["seconds"]))
    return {
        name: round(sum(each["seconds"].get(name, 0.0) for each in rounds), 1) for name in names
    }


class _Writers:
    """The engine that serves the policy: opened once, its adapter exchanged."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.engine: Engine | None = None

    def __call__(self, ad_llm: AdLLM) -> Engine:
        from mechanisms.llm.engines import make_engine

        spec = self.scenario.replies
        if ad_llm.adapter is None:
            return make_engine(spec.engine, model=ad_llm.model, dtype=spec.dtype)
        if self.engine is None:
            self.engine = make_engine(
                spec.engine, model=ad_llm.model, dtype=spec.dtype, adapter=ad_llm.adapter
            )
        else:
            self.engine.load_adapter(ad_llm.adapter)
        return self.engine

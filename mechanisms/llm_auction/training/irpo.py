"""Iterative Reward-Preference Optimisation (LLM-Auction, arXiv 2512.10551).

Each epoch alternates two phases, with bids redrawn in each:

1. **deploy**: the policy as it stands answers requests; users click; the pCTR model learns from the
   clicks, going on from where it was. So it knows the replies that the policy writes now. What was
   clicked before training began (`logs`) it learns from in the first epoch.
2. **prefer**: K replies per request are sampled and rewarded by `R = Σ b_i·pctr_i − λ·s_resp`; the
   best against all that are more than δ worse; DPO against the policy that the epoch started from.

The **Oracle** variant rewards by the users' own click probabilities, and needs no first phase.

Every phase leaves its result in the epoch's folder, and is passed over when that is there: a run
that was stopped goes on, to the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mechanisms.checks import non_negative, positive, whole
from mechanisms.errors import BadInput
from mechanisms.llm_auction.impressions import Impressions
from mechanisms.llm_auction.pctr import PCTR, Embeddings, Training
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.keeping import Clock, keep_tensors, keep_text
from mechanisms.llm_auction.training.packing import TOKENS, Pack, batches
from mechanisms.llm_auction.training.policy import Policy
from mechanisms.llm_auction.training.preferences import Preference, dpo_loss, preferences
from mechanisms.llm_auction.training.sampling import Sampled, Sampler, with_bids
from mechanisms.llm_auction.training.streams import (
    CLICKS,
    DEPLOY,
    DEPLOYED,
    HELD,
    ORDER,
    PREFER,
    PREFERRED,
    derived,
    seeded,
)
from mechanisms.llm_auction.training.trainer import Log, Schedule, Trainer
from mechanisms.pool import Floats
from mechanisms.recording.design import Request

HELD_SHARE = 0.2
"""Of the questions, kept from the click model in all epochs, so that it can be checked on them."""


@dataclass(frozen=True)
class IRPOSettings:
    """How IRPO is run; the paper's values are in the scenario `llm-auction-gpu`.

    Attributes:
        epochs: T.
        deployed: requests answered in the first phase.
        viewers: users who see each of these replies, and click or do not.
        requests: requests sampled in the second phase.
        samples: K, replies sampled per request.
        margin: δ, by how much a loser's reward is lower.
        beta: β of DPO, in 1 per nat of log-ratio.
        likelihood: γ, weight of the winner's likelihood per token; 0 is the paper's.
        passes: times each preference is met in an epoch.
        batch: requests in an optimiser step.
        lr: highest learning rate of an epoch.
        oracle: reward by the users' own click probabilities.
        pctr_epochs: passes of the pCTR model over the clicks of one deployment.
    """

    epochs: int = 1
    deployed: int = 200
    viewers: int = 10
    requests: int = 200
    samples: int = 5
    margin: float = 10.0
    beta: float = 0.1
    likelihood: float = 1.0
    passes: int = 1
    batch: int = 8
    lr: float = 2e-4
    oracle: bool = False
    pctr_epochs: int = 8

    def __post_init__(self) -> None:
        counts = ("epochs", "deployed", "viewers", "requests", "passes", "batch", "pctr_epochs")
        for name in counts:
            whole(name, getattr(self, name), least=1)
        whole("samples", self.samples, least=2)
        for name in ("beta", "lr"):
            positive(name, getattr(self, name))
        for name in ("margin", "likelihood"):
            non_negative(name, getattr(self, name))


class IRPO:
    """Trains a policy; see the head of this module.

    Args:
        policy: trained in place.
        sampler: has it write, and users judge.
        requests: to train on.
        reward: R.
        embeddings: of the click model's texts; None for the Oracle variant, which has none.
        settings: see `IRPOSettings`.
        folder: of this stage; holds a folder per epoch.
        seed: of all that is random.
        logs: impressions with clicks from before.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        requests: Sequence[Request],
        reward: ResponseReward,
        embeddings: Embeddings | None,
        settings: IRPOSettings,
        folder: Path,
        seed: int = 0,
        logs: Impressions | None = None,
    ) -> None:
        self.policy = policy
        self.sampler = sampler
        self.requests = requests
        self.reward = reward
        self.embeddings = embeddings
        self.pctr: PCTR | None = None
        self.settings = settings
        self.folder = folder
        self.seed = seed
        self.logs = logs

    def run(
        self,
        say: Callable[[str], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """All epochs; returns what each saw."""
        seen = []
        for epoch in range(self.settings.epochs):
            seen.append(self._epoch(epoch, say))
        return seen

    def _epoch(self, epoch: int, say: Callable[[str], None]) -> dict[str, Any]:
        folder = self.folder / f"epoch-{epoch + 1}"
        done, weights = folder / "done.json", folder / "policy.safetensors"
        if done.exists():
            self.policy.restore(load_file(weights))
            if not self.settings.oracle:
                self.pctr = PCTR.load(folder / "pctr", self._embeddings)
            return json.loads(done.read_text(encoding="utf-8"))
        clock = Clock(folder / "clock")
        clicked: dict[str, Any] = {}
        if not self.settings.oracle:
            clicked = self._deploy(epoch, folder)
            clock.note("deploy")
            say(f"epoch {epoch + 1}: {_line(clicked)}")
        sampled, rewards = self._sample(epoch, folder)
        clock.note("sample")
        preferred = self._preferences(sampled, rewards)
        pairs = sum(len(each.margins) for each in preferred)
        said = {
            "reward": float(rewards.mean()),
            "revenue": float(sampled.revenue.mean()),
            "well_formed": float(sampled.well_formed.mean()),
        }
        say(f"epoch {epoch + 1}: {len(preferred)} requests, {pairs} pairs; {_line(said)}")
        start = self._start(preferred, folder)
        clock.note("reference")
        log = self._train(epoch, preferred, start, folder)
        clock.note("train")
        seen = {
            "epoch": epoch + 1,
            **clicked,
            **said,
            "requests": len(preferred),
            "pairs": pairs,
            "tokens": sum(len(reply) for row in sampled.tokens for reply in row),
            "log": log,
            "first": mean_log(log[: max(1, len(log) // 5)]),
            "last": mean_log(log[-max(1, len(log) // 5) :]),
            "seconds": clock.seconds,
        }
        keep_tensors(self.policy.state(), weights)
        keep_text(json.dumps(seen, indent=1), done)
        say(f"epoch {epoch + 1}: seconds {_line(seen['seconds'])}")
        return seen

    @cached_property
    def held_back(self) -> set[str]:
        """Questions from which the click model never learns."""
        queries = sorted({request.query for request in self.requests})
        rng = seeded(self.seed, HELD, 0)
        return set(rng.permutation(queries)[: round(HELD_SHARE * len(queries))].tolist())

    @property
    def _embeddings(self) -> Embeddings:
        if self.embeddings is None:
            raise BadInput("IRPO with a click model needs a text encoder; or choose oracle: true")
        return self.embeddings

    def _asked(self, count: int, *key: int) -> list[Request]:
        """Requests drawn with replacement, as evenly as can be, under fresh bids."""
        rng = seeded(*key)
        rounds = -(-count // len(self.requests))
        order = np.concatenate([rng.permutation(len(self.requests)) for _ in range(rounds)])
        return with_bids([self.requests[i] for i in order[:count]], rng)

    def _deploy(self, epoch: int, folder: Path) -> dict[str, Any]:
        """Phase 1: replies, clicks, and a click model that has learned from them."""
        done = folder / "pctr.json"
        if done.exists():
            self.pctr = PCTR.load(folder / "pctr", self._embeddings)
            return json.loads(done.read_text(encoding="utf-8"))
        asked = self._asked(self.settings.deployed, self.seed, DEPLOY, epoch)
        seed = derived(self.seed, DEPLOYED, epoch)
        sampled = self.sampler.sample(self.policy, asked, 1, seed, folder / "deployment")
        shown = Impressions.of(sampled.requests, sampled.features)
        clicks = shown.drawn(sampled.ctr, seeded(self.seed, CLICKS, epoch), self.settings.viewers)
        if self.pctr is None and self.logs is not None:
            clicks = Impressions.stacked([self.logs, clicks])
            deployed = np.arange(len(clicks)) >= len(self.logs)
        else:
            deployed = np.ones(len(clicks), dtype=bool)
        known = ~np.isin(clicks.query, sorted(self.held_back))
        checked = clicks.take(deployed & ~known)
        before = self.pctr.scores(checked) if self.pctr and len(checked) else None
        self.pctr = PCTR.fit(
            clicks.take(known),
            self._embeddings,
            training=Training(epochs=self.settings.pctr_epochs),
            seed=derived(self.seed, CLICKS, epoch),
            validation=checked if len(checked) else None,
            start=self.pctr,
        )
        self.pctr.save(folder / "pctr")
        said = {
            "impressions": len(shown),
            "clicks": int(clicks.clicks[deployed].sum()),
            "pctr_before": before,
            "correlation_before": before and before["correlation"],
            "correlation": self.pctr.history[-1].get("correlation"),
            "pctr": list(self.pctr.history),
        }
        keep_text(json.dumps(said), done)
        return said

    def _sample(self, epoch: int, folder: Path) -> tuple[Sampled, Floats]:
        """Phase 2: replies of the policy and their rewards (B, K)."""
        s = self.settings
        asked = self._asked(s.requests, self.seed, PREFER, epoch)
        seed = derived(self.seed, PREFERRED, epoch)
        sampled = self.sampler.sample(self.policy, asked, s.samples, seed, folder / "samples")
        ctr = sampled.ctr
        if not s.oracle:
            assert self.pctr is not None
            ctr = self.pctr.click_probabilities(sampled.requests, sampled.features)
        return sampled, sampled.rewards(self.reward, ctr)

    def _preferences(self, sampled: Sampled, rewards: Floats) -> list[Preference]:
        prompts = [self.policy.prompt(r.query, r.user, r.ads, r.bids) for r in sampled.requests]
        return preferences(
            prompts, sampled.tokens, rewards, self.settings.margin, sampled.well_formed
        )

    def _start(self, preferred: Sequence[Preference], folder: Path) -> list[torch.Tensor]:
        """By preference, log-probabilities under the policy that the epoch starts from."""
        file = folder / "start.safetensors"
        if not file.exists():
            scores = self.policy.score([each.pack for each in preferred])
            keep_tensors({f"{i:06d}": score for i, score in enumerate(scores)}, file)
        kept = load_file(file)
        return [kept[name] for name in sorted(kept)]

    def _train(
        self,
        epoch: int,
        preferred: Sequence[Preference],
        start: Sequence[torch.Tensor],
        folder: Path,
    ) -> list[Log]:
        s = self.settings
        each = -(-len(preferred) // s.batch)
        schedule = Schedule(max(1, s.passes * each), s.batch, s.lr)
        orders = [
            seeded(self.seed, ORDER, epoch, turn).permutation(len(preferred))
            for turn in range(s.passes)
        ]
        trainer = Trainer(self.policy, schedule, folder / "training")

        def step(k: int) -> Log:
            turn, at = divmod(k, each)
            chosen = orders[turn][at * s.batch : (at + 1) * s.batch]
            return self._step([preferred[i] for i in chosen], [start[i] for i in chosen])

        return trainer.run(step) if preferred else []

    def _step(self, batch: Sequence[Preference], start: Sequence[torch.Tensor]) -> Log:
        packs: list[Pack] = [each.pack for each in batch]
        seen = []
        for part in batches(packs, TOKENS):
            sums, lengths = self.policy.log_probs([packs[i] for i in part])
            loss = dpo_loss(
                sums,
                lengths,
                torch.cat([start[i] for i in part]).to(sums.device),
                [len(packs[i].replies) - 1 for i in part],
                self.settings.beta,
                self.settings.likelihood,
            )
            (loss.value / len(batch)).backward()
            seen.append((len(part), loss))
        total = sum(loss.pairs for _, loss in seen)
        mean = {
            name: sum(getattr(loss, name) * loss.pairs for _, loss in seen) / total
            for name in ("correct", "margin", "winner", "loser", "kl")
        }
        value = sum(float(loss.value.detach()) for _, loss in seen) / len(batch)
        return {"loss": value, **mean, "pairs": float(total)}


def mean_log(log: Sequence[Log]) -> dict[str, float]:
    """The mean of some rows of a log, by column."""
    return {name: float(np.mean([row[name] for row in log])) for name in (log[0] if log else ())}


def _line(said: Mapping[str, Any]) -> str:
    """Figures in one line, lists of them left out."""
    numbers = {name: value for name, value in said.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())

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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mechanisms.checks import non_negative, positive, whole
from mechanisms.errors import BadInput
from mechanisms.llm_auction.impressions import Impressions
from mechanisms.llm_auction.pctr import PCTR, Embeddings, Training
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.packing import Pack, batches
from mechanisms.llm_auction.training.policy import Policy, seeded
from mechanisms.llm_auction.training.preferences import Preference, dpo_loss, preferences
from mechanisms.llm_auction.training.sampling import Sampled, Sampler, with_bids
from mechanisms.llm_auction.training.trainer import Log, Schedule, Trainer
from mechanisms.pool import Floats
from mechanisms.recording.design import Request

DEPLOY, PREFER, CLICKS, ORDER = 1, 2, 3, 4  # purposes of random streams
TOKENS = 2200  # padded tokens in one pass


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
        clock = Clock()
        clicked: dict[str, Any] = {}
        if not self.settings.oracle:
            clicked = self._deploy(epoch, folder)
            clock.note("deploy")
            say(f"epoch {epoch + 1}: {clicked}")
        sampled, rewards = self._sample(epoch, folder)
        clock.note("sample")
        preferred = self._preferences(sampled, rewards)
        pairs = sum(len(each.margins) for each in preferred)
        said = {
            "reward": float(rewards.mean()),
            "revenue": float(sampled.revenue.mean()),
            "well_formed": float(sampled.well_formed.mean()),
        }
        say(f"epoch {epoch + 1}: {len(preferred)} requests, {pairs} pairs; sampled {said}")
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
        save_file(self.policy.state(), weights)
        done.write_text(json.dumps(seen, indent=1), encoding="utf-8")
        return seen

    @property
    def _embeddings(self) -> Embeddings:
        if self.embeddings is None:
            raise BadInput("IRPO with a click model needs a text encoder; or choose oracle: true")
        return self.embeddings

    def _asked(self, count: int, *key: int) -> list[Request]:
        """Requests drawn with replacement, as evenly as can be, under fresh bids."""
        rng = seeded(self.seed, *key)
        rounds = -(-count // len(self.requests))
        order = np.concatenate([rng.permutation(len(self.requests)) for _ in range(rounds)])
        return with_bids([self.requests[i] for i in order[:count]], rng)

    def _deploy(self, epoch: int, folder: Path) -> dict[str, Any]:
        """Phase 1: replies, clicks, and a click model that has learned from them."""
        done = folder / "pctr.json"
        if done.exists():
            self.pctr = PCTR.load(folder / "pctr", self._embeddings)
            return json.loads(done.read_text(encoding="utf-8"))
        asked = self._asked(self.settings.deployed, epoch, DEPLOY)
        seed = derived(self.seed, epoch, DEPLOY)
        sampled = self.sampler.sample(self.policy, asked, 1, seed, folder / "deployment")
        shown = Impressions.of(sampled.requests, sampled.features)
        clicks = shown.drawn(sampled.ctr, seeded(self.seed, epoch, CLICKS), self.settings.viewers)
        learning, held = clicks.split(0.2, self.seed)
        if self.pctr is None and self.logs is not None:
            learning = Impressions.stacked([self.logs, learning])
        before = None if self.pctr is None else self.pctr.scores(held)
        self.pctr = PCTR.fit(
            learning,
            self._embeddings,
            training=Training(epochs=self.settings.pctr_epochs),
            seed=derived(self.seed, epoch, DEPLOY),
            validation=held,
            start=self.pctr,
        )
        self.pctr.save(folder / "pctr")
        said = {
            "impressions": len(shown),
            "clicks": int(clicks.clicks.sum()),
            "pctr_before": before,
            "correlation_before": None if before is None else before["correlation"],
            "correlation": self.pctr.history[-1]["correlation"],
            "pctr": list(self.pctr.history),
        }
        done.write_text(json.dumps(said), encoding="utf-8")
        return said

    def _sample(self, epoch: int, folder: Path) -> tuple[Sampled, Floats]:
        """Phase 2: replies of the policy and their rewards (B, K)."""
        s = self.settings
        asked = self._asked(s.requests, epoch, PREFER)
        seed = derived(self.seed, epoch, PREFER)
        sampled = self.sampler.sample(self.policy, asked, s.samples, seed, folder / "samples")
        ctr = sampled.ctr
        if not s.oracle:
            assert self.pctr is not None
            ctr = self.pctr.click_probabilities(sampled.requests, sampled.features)
        f = sampled.features
        return sampled, self.reward(sampled.bids, ctr, f.exposure, f.malformed, f.complete)

    def _preferences(self, sampled: Sampled, rewards: Floats) -> list[Preference]:
        prompts = [self.policy.prompt(r.query, r.user, r.ads, r.bids) for r in sampled.requests]
        return preferences(prompts, sampled.tokens, rewards, self.settings.margin)

    def _start(self, preferred: Sequence[Preference], folder: Path) -> list[torch.Tensor]:
        """By preference, log-probabilities under the policy that the epoch starts from."""
        file = folder / "start.safetensors"
        if not file.exists():
            scores = self.policy.score([each.pack for each in preferred])
            fresh = file.with_suffix(".new")
            save_file({f"{i:06d}": score for i, score in enumerate(scores)}, fresh)
            fresh.rename(file)
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
            seeded(self.seed, epoch, ORDER, turn).permutation(len(preferred))
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


class Clock:
    """Seconds between notes, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def note(self, name: str) -> None:
        """The time since the last note went into `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._at, 2)
        self._at = now


def derived(*key: int) -> int:
    """A seed from a key."""
    return int(seeded(*key).integers(2**31))


def mean_log(log: Sequence[Log]) -> dict[str, float]:
    """The mean of some rows of a log, by column."""
    return {name: float(np.mean([row[name] for row in log])) for name in (log[0] if log else ())}

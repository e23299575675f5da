"""Policy gradients straight from clicks: one stage, no reward model, no pairs (ours).

The paper's first open question. Each iteration the policy as it stands answers requests, K replies
each under fresh bids, users click or do not, and the realised reward of a reply,
`r = Σ_i b_i·click_i − λ·s_resp`, is compared with the others to the same request (GRPO, Shao et al.
2024, arXiv 2402.03300). Like Liu et al. (2025, arXiv 2503.20783) we divide neither by a reply's
length nor by the spread of its group, which would make a click at a bid of 3 worth one at 95:

    A_k = (r_k − mean of its request) / (spread of the iteration)
    L = Σ_k Σ_t [ κ·(e^x − 1 − x) − min(ρ·A_k, clip(ρ, 1 − c, 1 + c)·A_k) ] / K

with, at token t of reply k, ρ = π_θ/π_sampled and x = log π_0 − log π_θ, whose term estimates the
KL divergence from the policy π_0 that the stage started from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mechanisms.checks import non_negative, positive, whole
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.irpo import mean_log
from mechanisms.llm_auction.training.keeping import Clock, keep_tensors, keep_text
from mechanisms.llm_auction.training.packing import TOKENS, Pack, batches
from mechanisms.llm_auction.training.policy import Policy
from mechanisms.llm_auction.training.sampling import Sampled, Sampler, with_bids
from mechanisms.llm_auction.training.streams import ANSWER, ASK, CLICK, derived, seeded
from mechanisms.llm_auction.training.trainer import Log, Schedule, Trainer
from mechanisms.pool import Floats
from mechanisms.recording.design import Request


@dataclass(frozen=True)
class OnlineSettings:
    """How the online stage is run.

    Attributes:
        iterations: times the policy is deployed.
        requests: requests answered in an iteration.
        samples: K, replies to each.
        batch: requests in an optimiser step.
        lr: learning rate, the same in all iterations.
        clip: c.
        kl: κ, weight of the divergence from where the stage started.
        expected: rewards by click probabilities instead of clicks: less noise, and no longer
            what a platform sees.
    """

    iterations: int = 8
    requests: int = 40
    samples: int = 5
    batch: int = 8
    lr: float = 2e-4
    clip: float = 0.2
    kl: float = 0.02
    expected: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "requests", "batch"):
            whole(name, getattr(self, name), least=1)
        whole("samples", self.samples, least=2)
        for name in ("lr", "clip"):
            positive(name, getattr(self, name))
        non_negative("kl", self.kl)


class Online:
    """Trains a policy in place, as `mechanisms.llm_auction.training.irpo.IRPO` does."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        requests: Sequence[Request],
        reward: ResponseReward,
        settings: OnlineSettings,
        folder: Path,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.sampler = sampler
        self.requests = requests
        self.reward = reward
        self.settings = settings
        self.folder = folder
        self.seed = seed

    def run(
        self,
        say: Callable[[str], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """All iterations; returns what each saw."""
        self.folder.mkdir(parents=True, exist_ok=True)
        start = self.folder / "start.safetensors"
        if not start.exists():
            keep_tensors(self.policy.state(), start)
        seen = []
        for iteration in range(self.settings.iterations):
            seen.append(self._iteration(iteration, load_file(start)))
            told = {key: value for key, value in seen[-1].items() if isinstance(value, int | float)}
            say(", ".join(f"{key} {value:.4g}" for key, value in told.items()))
        return seen

    def _iteration(self, iteration: int, start: dict[str, Tensor]) -> dict[str, Any]:
        folder = self.folder / f"iteration-{iteration + 1}"
        done, weights = folder / "done.json", folder / "policy.safetensors"
        if done.exists():
            self.policy.restore(load_file(weights))
            return json.loads(done.read_text(encoding="utf-8"))
        clock = Clock(folder / "clock")
        sampled, rewards = self._sample(iteration, folder)
        clock.note("sample")
        packs = [
            Pack(self.policy.prompt(r.query, r.user, r.ads, r.bids), tokens)
            for r, tokens in zip(sampled.requests, sampled.tokens, strict=True)
        ]
        before = self._densities(packs, start, folder)
        clock.note("reference")
        log = self._train(iteration, packs, advantages(rewards), before, folder)
        clock.note("train")
        seen = {
            "iteration": iteration + 1,
            "reward": float(rewards.mean()),
            "revenue": float(sampled.revenue.mean()),
            "well_formed": float(sampled.well_formed.mean()),
            "tokens": sum(len(reply) for row in sampled.tokens for reply in row),
            "log": log,
            "last": mean_log(log),
            "seconds": clock.seconds,
        }
        keep_tensors(self.policy.state(), weights)
        keep_text(json.dumps(seen, indent=1), done)
        return seen

    def _sample(self, iteration: int, folder: Path) -> tuple[Sampled, Floats]:
        s = self.settings
        rng = seeded(self.seed, ASK, iteration)
        chosen = rng.choice(
            len(self.requests), size=s.requests, replace=s.requests > len(self.requests)
        )
        asked = with_bids([self.requests[i] for i in chosen], rng)
        seed = derived(self.seed, ANSWER, iteration)
        sampled = self.sampler.sample(self.policy, asked, s.samples, seed, folder / "samples")
        clicks = sampled.ctr
        if not s.expected:
            rolled = seeded(self.seed, CLICK, iteration).random(sampled.ctr.shape)
            clicks = (rolled < sampled.ctr).astype(np.float64)
        return sampled, sampled.rewards(self.reward, clicks)

    def _densities(
        self, packs: Sequence[Pack], start: dict[str, Tensor], folder: Path
    ) -> dict[str, list[Tensor]]:
        """By pack, token log-probabilities under the policy that sampled, and under the first."""
        file = folder / "densities.safetensors"
        if not file.exists():
            now = self.policy.state()
            found = {"sampled": torch.cat(self.policy.score_tokens(packs))}
            self.policy.restore(start)
            found["start"] = torch.cat(self.policy.score_tokens(packs))
            self.policy.restore(now)
            keep_tensors(found, file)
        sizes = [sum(map(len, pack.replies)) for pack in packs]
        return {name: list(value.split(sizes)) for name, value in load_file(file).items()}

    def _train(
        self,
        iteration: int,
        packs: Sequence[Pack],
        gains: Floats,
        before: dict[str, list[Tensor]],
        folder: Path,
    ) -> list[Log]:
        s = self.settings
        steps = -(-len(packs) // s.batch)
        trainer = Trainer(
            self.policy, Schedule(steps, s.batch, s.lr, flat=True), folder / "training"
        )

        def step(k: int) -> Log:
            mine = range(k * s.batch, min((k + 1) * s.batch, len(packs)))
            seen: list[tuple[int, Log]] = []
            for part in batches([packs[i] for i in mine], TOKENS):
                rows = [mine[i] for i in part]
                each, reply = self.policy.token_log_probs([packs[i] for i in rows])
                loss, said = policy_loss(
                    each,
                    reply,
                    torch.cat([before["sampled"][i] for i in rows]).to(each.device),
                    torch.cat([before["start"][i] for i in rows]).to(each.device),
                    torch.tensor(gains[rows].ravel(), dtype=torch.float32, device=each.device),
                    s.clip,
                    s.kl,
                )
                (loss * len(rows) / len(mine)).backward()
                seen.append((len(rows), said))
            return {
                name: sum(count * said[name] for count, said in seen) / len(mine)
                for name in seen[0][1]
            }

        return trainer.run(step)


def advantages(rewards: Floats) -> Floats:
    """(B, K) rewards relative to the mean of the same request, in spreads of all; 0 if equal."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = float(np.sqrt((centred**2).mean()))
    return centred / spread if spread > 1e-9 else np.zeros_like(centred)


def policy_loss(
    log_probs: Tensor,
    reply: Tensor,
    sampled: Tensor,
    start: Tensor,
    gains: Tensor,
    clip: float,
    kl: float,
) -> tuple[Tensor, Log]:
    """The loss of the module's head; and what was seen.

    Args:
        log_probs: (T,) of the reply tokens.
        reply: (T,) which of the K replies each is of.
        sampled: (T,) under the policy that wrote them.
        start: (T,) under the policy that the stage started from.
        gains: (K,) advantages.
        clip: c.
        kl: κ.
    """
    ratio, gain = (log_probs - sampled).exp(), gains[reply]
    pushed = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    back = start - log_probs
    divergence = back.exp() - 1 - back
    loss = (kl * divergence - pushed).sum() / len(gains)
    return loss, {
        "loss": float(loss.detach()),
        "kl": float(divergence.sum().detach()) / len(gains),
        "clipped": float(((ratio - 1).abs() > clip).float().mean()),
    }

"""Policy gradients straight from clicks: one stage, no reward model, no pairs (ours).

The paper's first open question. Each iteration the policy as it stands answers requests, K replies
each under fresh bids, users click or do not, and the realised reward of a reply,
`r = Σ_i b_i·click_i − λ·s_resp`, is compared with the others to the same request (GRPO, Shao et al.
2024, arXiv 2402.03300; without the division by length, Liu et al. 2025, arXiv 2503.20783):

    A_k = (r_k − mean r) / (std r + ε)
    L = −Σ_k min(ρ_k·A_k, clip(ρ_k, 1 − c, 1 + c)·A_k) / K + κ·KL(π_θ ‖ π_0),   ρ_k = π_θ/π_sampled

with the token-mean log-ratio in ρ, and e^x − 1 − x, x = log π_0/π_θ per token, as the estimate of
the KL divergence from the policy that the stage started from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechanisms.checks import non_negative, positive, whole
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.irpo import TOKENS, Clock, derived, mean_log
from mechanisms.llm_auction.training.packing import Pack, batches
from mechanisms.llm_auction.training.policy import Policy, seeded
from mechanisms.llm_auction.training.sampling import Sampled, Sampler, with_bids
from mechanisms.llm_auction.training.trainer import Log, Schedule, Trainer
from mechanisms.pool import Floats
from mechanisms.recording.design import Request

ASK, WRITE, CLICK = 11, 12, 13  # purposes of random streams


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
            save_file(self.policy.state(), start)
        seen = []
        for iteration in range(self.settings.iterations):
            seen.append(self._iteration(iteration, load_file(start)))
            say(f"iteration {iteration + 1}: {seen[-1]}")
        return seen

    def _iteration(self, iteration: int, start: dict[str, Tensor]) -> dict[str, Any]:
        folder = self.folder / f"iteration-{iteration + 1}"
        done, weights = folder / "done.json", folder / "policy.safetensors"
        if done.exists():
            self.policy.restore(load_file(weights))
            return json.loads(done.read_text(encoding="utf-8"))
        clock = Clock()
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
        save_file(self.policy.state(), weights)
        done.write_text(json.dumps(seen, indent=1), encoding="utf-8")
        return seen

    def _sample(self, iteration: int, folder: Path) -> tuple[Sampled, Floats]:
        s = self.settings
        rng = seeded(self.seed, iteration, ASK)
        chosen = rng.choice(
            len(self.requests), size=s.requests, replace=s.requests > len(self.requests)
        )
        asked = with_bids([self.requests[i] for i in chosen], rng)
        seed = derived(self.seed, iteration, WRITE)
        sampled = self.sampler.sample(self.policy, asked, s.samples, seed, folder / "samples")
        clicks = sampled.ctr
        if not s.expected:
            rolled = seeded(self.seed, iteration, CLICK).random(sampled.ctr.shape)
            clicks = (rolled < sampled.ctr).astype(np.float64)
        f = sampled.features
        return sampled, self.reward(sampled.bids, clicks, f.exposure, f.malformed, f.complete)

    def _densities(
        self, packs: Sequence[Pack], start: dict[str, Tensor], folder: Path
    ) -> dict[str, Tensor]:
        """(packs · K,) log-probabilities under the policy that sampled, and under the first."""
        file = folder / "densities.safetensors"
        if not file.exists():
            now = self.policy.state()
            found = {"sampled": torch.cat(self.policy.score(packs))}
            self.policy.restore(start)
            found["start"] = torch.cat(self.policy.score(packs))
            self.policy.restore(now)
            fresh = file.with_suffix(".new")
            save_file(found, fresh)
            fresh.rename(file)
        return load_file(file)

    def _train(
        self,
        iteration: int,
        packs: Sequence[Pack],
        gains: Floats,
        before: dict[str, Tensor],
        folder: Path,
    ) -> list[Log]:
        s, K = self.settings, self.settings.samples
        steps = -(-len(packs) // s.batch)
        trainer = Trainer(
            self.policy, Schedule(steps, s.batch, s.lr, flat=True), folder / "training"
        )

        def step(k: int) -> Log:
            mine = range(k * s.batch, min((k + 1) * s.batch, len(packs)))
            seen: list[Log] = []
            for part in batches([packs[i] for i in mine], TOKENS):
                rows = [mine[i] for i in part]
                sums, lengths = self.policy.log_probs([packs[i] for i in rows])
                at = torch.tensor([i * K + j for i in rows for j in range(K)])
                loss, said = policy_loss(
                    sums,
                    lengths,
                    before["sampled"][at].to(sums.device),
                    before["start"][at].to(sums.device),
                    torch.tensor(gains.ravel()[at], dtype=torch.float32, device=sums.device),
                    s.clip,
                    s.kl,
                )
                (loss * len(rows) / len(mine)).backward()
                seen.append(said)
            return mean_log(seen)

        return trainer.run(step)


def advantages(rewards: Floats) -> Floats:
    """(B, K) rewards relative to the others of the same request, 0 where all are alike."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, keepdims=True) + 1e-6)


def policy_loss(
    log_probs: Tensor,
    lengths: Tensor,
    sampled: Tensor,
    start: Tensor,
    gains: Tensor,
    clip: float,
    kl: float,
) -> tuple[Tensor, Log]:
    """The loss of the module's head, all arguments (K,); and what was seen."""
    ratio = ((log_probs - sampled) / lengths).exp()
    gain = torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains)
    # The ratio is per token, so its gradient is a token's share: times the tokens of a reply.
    towards = (start - log_probs) / lengths
    divergence = towards.exp() - 1 - towards
    loss = (lengths * (kl * divergence - gain)).mean()
    return loss, {
        "loss": float(loss.detach()),
        "kl": float((lengths * divergence).mean().detach()),
        "clipped": float(((ratio - 1).abs() > clip).float().mean()),
    }

"""Steps of training that survive a crash: the same weights, to the last bit, as undisturbed.

What step k draws depends on (seed, stage, k) alone, so that a state is: weights, the optimiser's
moments, the number of steps done, and the log so far. It is written every few steps, in one move.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechanisms.checks import positive, whole
from mechanisms.errors import BadInput
from mechanisms.llm_auction.training.policy import Policy

STATE, PROGRESS = "state.safetensors", "progress.json"
EVERY = 10  # steps between two writings of the state
Log = dict[str, float]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: optimiser steps.
        batch: examples a step.
        lr: highest learning rate of AdamW; it warms up linearly and falls along a cosine.
        warm_up: share of the steps that warms up.
        clip: largest gradient norm.
        flat: keep the learning rate, for a stage of many short runs.
    """

    steps: int
    batch: int = 8
    lr: float = 5e-4
    warm_up: float = 0.1
    clip: float = 1.0
    flat: bool = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, least=1)
        whole("batch", self.batch, least=1)
        positive("lr", self.lr)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if self.flat:
            return self.lr
        rising = (step + 1) / max(1.0, self.warm_up * self.steps)
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(rising, 1.0) * falling


class Trainer:
    """Runs the steps of one stage, and takes up again where an earlier run was stopped.

    Args:
        policy: trained in place.
        schedule: see `Schedule`.
        folder: where the state is kept; None to keep none.
    """

    def __init__(self, policy: Policy, schedule: Schedule, folder: Path | None) -> None:
        self.policy = policy
        self.schedule = schedule
        self.folder = folder
        self.parameters = list(policy.trained.values())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.log: list[Log] = []

    def run(
        self,
        step: Callable[[int], Log],
        say: Callable[[Log], None] = lambda _: None,
    ) -> list[Log]:
        """Do all steps that are left.

        Args:
            step: computes the loss of step k, calls `backward` on it and says what it saw.
            say: told the log of each step.

        Returns:
            The log of all steps, those of earlier runs included.
        """
        self._resume()
        while len(self.log) < self.schedule.steps:
            k = len(self.log)
            started = time.perf_counter()
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule.rate(k)
            seen = step(k)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            seconds = time.perf_counter() - started
            self.log.append(
                {"step": k, **seen, "gradient_norm": float(norm), "seconds": round(seconds, 3)}
            )
            say(self.log[-1])
            if (k + 1) % EVERY == 0 or k + 1 == self.schedule.steps:
                self._keep()
        return self.log

    def _keep(self) -> None:
        if self.folder is None:
            return
        moments = self.optimiser.state_dict()["state"]
        tensors = {f"weight:{name}": value for name, value in self.policy.state().items()}
        for index, state in moments.items():
            for kind in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{kind}:{index}"] = state[kind].detach().cpu().clone()
        fresh = self.folder.with_name(f".{self.folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(tensors, fresh / STATE)
        progress = {"schedule": asdict(self.schedule), "log": self.log}
        (fresh / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        _swap(fresh, self.folder)

    def _resume(self) -> None:
        if self.folder is None:
            return
        _finish_swap(self.folder)
        if not (self.folder / PROGRESS).exists():
            return
        progress = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
        if progress["schedule"] != asdict(self.schedule):
            raise BadInput(f"{self.folder} holds training by another schedule; delete it")
        self.log = progress["log"]
        tensors = load_file(self.folder / STATE)
        self.policy.restore(_part(tensors, "weight:"))
        state: dict[int, dict[str, Any]] = {}
        for index in range(len(self.parameters)):
            state[index] = {
                kind: tensors[f"{kind}:{index}"] for kind in ("exp_avg", "exp_avg_sq", "step")
            }
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; `_finish_swap` mends what a crash leaves between."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _finish_swap(folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.exists():
        os.rename(old, folder)

"""Replies of the policy as it stands, written, measured and rewarded.

Written through the engine that also serves it, so that training sees what users will. Work is kept
chunk by chunk: a run that was stopped goes on with the chunk it was at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mechanisms.llm.base import Engine
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.training.policy import Policy
from mechanisms.llm_auction.training.targets import draw_bids
from mechanisms.pool import Bools, Floats
from mechanisms.recording.auction import write_auction
from mechanisms.recording.design import Design, Features, Request, Users
from mechanisms.recording.measure import measure

CHUNK = 40  # requests written at once


@dataclass(frozen=True, eq=False)
class Sampled:
    """K replies to each of B requests, a request's all under the same bids.

    Attributes:
        requests: (B) with their bids.
        tokens: (B) lists of K replies in token ids as the LLM wrote them, end of turn included.
        features: what was measured.
        ctr: (B, K, n) the users' click probabilities.
        quality: (B, K) their satisfaction.
    """

    requests: list[Request]
    tokens: list[list[list[int]]]
    features: Features
    ctr: Floats
    quality: Floats

    @property
    def bids(self) -> Floats:
        """(B, n)"""
        return np.array([request.bids for request in self.requests], dtype=np.float64)

    @property
    def well_formed(self) -> Bools:
        """(B, K) no marker of the reply is broken."""
        return self.features.malformed == 0

    @property
    def revenue(self) -> Floats:
        """(B, K) expected revenue at first price, `Σ_i b_i·ctr_i`."""
        return (self.bids[:, None] * self.ctr).sum(axis=2)


class Sampler:
    """Has a policy write.

    Args:
        reference: the LLM as it is, by which users judge what is fluent.
        users: judge; their norms are fixed, so that what is fluent is the same all along.
        writer_of: the engine that serves an Ad-LLM.
        num_replies: K.
    """

    def __init__(
        self,
        reference: Engine,
        users: Users,
        writer_of: Callable[[AdLLM], Engine],
        reference_temperature: float = 0.3,
    ) -> None:
        self.reference = reference
        self.users = users
        self.writer_of = writer_of
        self.reference_temperature = reference_temperature

    def sample(
        self,
        policy: Policy,
        requests: Sequence[Request],
        replies: int,
        seed: int,
        folder: Path,
    ) -> Sampled:
        """Replies of `policy` as it stands to `requests` (with bids), kept in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        writer: Engine | None = None
        parts = []
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            file = folder / f"{start:05d}.safetensors"
            if not file.exists():
                if writer is None:
                    writer = self.writer_of(policy.save(folder / "serving", {}))
                keys = range(start, start + len(chunk))
                _keep(self._write(writer, policy, chunk, replies, seed, keys), file)
            parts.append(_kept(file, chunk))
        return _joined(parts)

    def _write(
        self,
        writer: Engine,
        policy: Policy,
        requests: Sequence[Request],
        replies: int,
        seed: int,
        keys: Sequence[int],
    ) -> Sampled:
        design = Design(
            replies=replies,
            generation="auction",
            temperature=self.reference_temperature,
            ad_llm=policy.spec,
        )
        recorded = write_auction(requests, self.reference, design, seed, keys, writer)
        features = measure(requests, recorded.written)
        judged = self.users(requests, features)
        end = policy.tokenizer.end_token
        tokens = [[[*reply.raw, end] for reply in row] for row in recorded.written]
        return Sampled(list(requests), tokens, features, judged.ctr, judged.quality)


def with_bids(requests: Sequence[Request], rng: np.random.Generator) -> list[Request]:
    """Requests with their candidate ads in a fresh order, under fresh bids of 1..100."""
    asked = []
    for request in requests:
        order = rng.permutation(len(request.ads))
        asked.append(
            replace(
                request,
                ads=[request.ads[i] for i in order],
                advertisers=[request.advertisers[i] for i in order],
                bids=tuple(draw_bids(rng, len(order)).astype(float).tolist()),
            )
        )
    return asked


_ARRAYS = ("exposure", "nativeness", "place", "sentences", "fluency", "complete", "malformed")


def _keep(sampled: Sampled, file: Path) -> None:
    arrays = {name: np.ascontiguousarray(getattr(sampled.features, name)) for name in _ARRAYS}
    arrays |= {"ctr": sampled.ctr, "quality": sampled.quality}
    said = {"text": json.dumps(sampled.features.text), "tokens": json.dumps(sampled.tokens)}
    fresh = file.with_suffix(".new")
    save_file(arrays, fresh, metadata=said)
    fresh.rename(file)


def _kept(file: Path, requests: Sequence[Request]) -> Sampled:
    from safetensors import safe_open

    arrays = load_file(file)
    with safe_open(file, "np") as opened:
        said = opened.metadata()
    features = Features(text=json.loads(said["text"]), **{name: arrays[name] for name in _ARRAYS})
    tokens = json.loads(said["tokens"])
    return Sampled(list(requests), tokens, features, arrays["ctr"], arrays["quality"])


def _joined(parts: Sequence[Sampled]) -> Sampled:
    features = Features(
        text=[text for part in parts for text in part.features.text],
        **{
            name: np.concatenate([getattr(part.features, name) for part in parts])
            for name in _ARRAYS
        },
    )
    return Sampled(
        [request for part in parts for request in part.requests],
        [row for part in parts for row in part.tokens],
        features,
        np.concatenate([part.ctr for part in parts]),
        np.concatenate([part.quality for part in parts]),
    )

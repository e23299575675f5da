"""Replies of the policy as it stands, written and measured.

Written through the engine that also serves it, so that training sees what users will. Work is kept
chunk by chunk: a run that was stopped goes on with the chunk it was at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import shown_bids
from mechanisms.llm_auction.reward import ResponseReward
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
        tokens: (B) lists of K replies in token ids, all that the LLM sampled and no more: its end
            of turn only where it wrote one.
        features: what was measured.
        ctr: (B, K, n) the users' click probabilities.
        quality: (B, K) their satisfaction.
        broken_off: (B, K) the reply ran on or in circles until it was stopped; what is shown of it
            ends earlier.
    """

    requests: list[Request]
    tokens: list[list[list[int]]]
    features: Features
    ctr: Floats
    quality: Floats
    broken_off: Bools

    @property
    def bids(self) -> Floats:
        """(B, n)"""
        return np.array([request.bids for request in self.requests], dtype=np.float64)

    @property
    def well_formed(self) -> Bools:
        """(B, K) no marker of the reply is broken."""
        return self.features.malformed == 0

    def rewards(self, reward: ResponseReward, ctr: Floats) -> Floats:
        """(B, K) R of the replies, by click probabilities or clicks `ctr` (B, K, n).

        Of bids as the LLM reads them: replies cannot depend on more.
        """
        f = self.features
        read = shown_bids(self.bids).astype(np.float64)
        return reward(read, ctr, f.exposure, f.malformed, f.complete & ~self.broken_off)

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
        reference_temperature: at which the reference LLM says how fluent a reply is.
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
            told = _digest(chunk, replies, seed, policy.spec)
            if not file.exists():
                if writer is None:
                    writer = self.writer_of(policy.save(folder / "serving", {}))
                keys = range(start, start + len(chunk))
                _keep(self._write(writer, policy, chunk, replies, seed, keys), told, file)
            parts.append(_kept(file, told, chunk))
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
        tokens = [[list(reply.raw) for reply in row] for row in recorded.written]
        broken = np.array([[reply.broken_off for reply in row] for row in recorded.written])
        return Sampled(list(requests), tokens, features, judged.ctr, judged.quality, broken)


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


def _digest(requests: Sequence[Request], replies: int, seed: int, spec: AdLLM) -> str:
    """What the replies depend on, besides the weights."""
    asked = [
        [r.query, r.user_id, r.user, list(r.bids or ())]
        + [[ad.id, ad.title, ad.text, ad.tagline] for ad in r.ads]
        for r in requests
    ]
    card = [asdict(spec.style), asdict(spec.rules), spec.temperature]
    return hashlib.sha256(json.dumps([asked, replies, seed, card]).encode()).hexdigest()


def _keep(sampled: Sampled, told: str, file: Path) -> None:
    arrays = {name: np.ascontiguousarray(getattr(sampled.features, name)) for name in _ARRAYS}
    arrays |= {name: getattr(sampled, name) for name in ("ctr", "quality", "broken_off")}
    said = {"text": json.dumps(sampled.features.text), "tokens": json.dumps(sampled.tokens)}
    fresh = file.with_suffix(".new")
    save_file(arrays, fresh, metadata={**said, "of": told})
    fresh.rename(file)


def _kept(file: Path, told: str, requests: Sequence[Request]) -> Sampled:
    arrays = load_file(file)
    with safe_open(file, "np") as opened:
        said = opened.metadata()
    if said["of"] != told:
        raise BadInput(f"{file} holds replies to other requests; delete its folder and train again")
    features = Features(text=json.loads(said["text"]), **{name: arrays[name] for name in _ARRAYS})
    tokens = json.loads(said["tokens"])
    return Sampled(
        list(requests), tokens, features, arrays["ctr"], arrays["quality"], arrays["broken_off"]
    )


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
        np.concatenate([part.broken_off for part in parts]),
    )

"""Content-only ads: an outcome without links (LLM-Auction's second open question).

There is nothing to click. What an ad got is how far the reply speaks of it, against what the LLM
would have said anyway. With e the sentence embedding of a text (titles read as plain words) and q
that of the query, both of unit length,

    lift_i(y) = e(y)·m_i − mean over no-ad replies y0 to the same request of e(y0)·m_i,
    m_i       = e(ad_i) − (e(ad_i)·q) q,

m_i being what the ad says beyond the query: replies differ in how close they keep to the question,
and an ad that copies the question must not be paid for that. The lift is 0 in the mean over no-ad
replies. What chance alone would lift is taken off: a further no-ad reply stays below

    noise_i = t(K − 1, confidence) · sd_i · √(1 + 1/K)

with that probability, sd_i being the spread of the K no-ad replies (a prediction interval). The
rest, as a share of `full`, is the ad's credit,

    credit_i(y) = clip((lift_i(y) − noise_i) / full, 0, 1).

The map is linear and not logistic, since what is within the noise must be worth exactly 0, and
twice the movement twice as much. `full` is the same for all ads: relative to what an ad could gain
at most, one that says little beyond the query would be paid in full for a little.

A reply moves once, however many ads it moves towards. Its ads share the largest credit by the
Shapley value of `v(S) = max over S of credit_i` (the airport game; Littlechild & Owen 1973): every
increment is shared alike by those who reach it. Attributions sum to `v`; an ad without credit gets
nothing and takes nothing, and two ads with the same words halve what one would have had.
Leave-one-out would pay these two nothing.

Lift pays for being spoken of, not for being wanted. In the default market attributions hardly go
with the clicks of `BehaviouralUsers` (rank correlation −0.09 over 416 shown ads) and fall with the
ad's relevance to the query (−0.27): an ad that leads the answer astray moves it most. And an ad
that says nothing but its name is met in full by any reply that names it. Whoever sells content by
lift must see to relevance and to the ads' texts by other means.

An ad is *present* where the platform had it named: attributions of others are 0, even where a reply
comes close to them by itself or through a rival. Satisfaction is that of `BehaviouralUsers`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from agents.users import BehaviouralUsers, Norms
from mechanisms.checks import positive
from mechanisms.errors import BadInput
from mechanisms.mentions import MENTION
from mechanisms.pool import Bools, Floats, ReplyPool
from mechanisms.recording import Features, Judgement, Request

LEAST = 2
"""No-ad replies to a request, below which nothing is known of their spread."""


class Lift(NamedTuple):
    """How far replies move towards ads.

    Attributes:
        lift: (B, M, n) likeness to what the ad says beyond the query, less its mean over the
            request's no-ad replies.
        noise: (B, n) what a no-ad reply stays below with the probability asked for.
    """

    lift: Floats
    noise: Floats


@dataclass(frozen=True, eq=False)
class ContentUsers(BehaviouralUsers):
    """Turns measured replies into attributions and satisfaction; see the module's formulas.

    Called like `BehaviouralUsers`; a `Judgement`'s `ctr` is then the attribution in [0, 1]. The
    coefficients of clicks are not used.

    Attributes:
        confidence: by which a lift must be more than noise; one-sided.
        full: lift beyond noise that is worth a whole attribution; by default what one named ad in
            a hundred reaches in the default market.
        counterfactuals: no-ad replies by query (`counterfactuals_of`). None for those among the
            replies judged: then a judgement depends on what else was written, and replies written
            live are judged by others than those recorded.
    """

    confidence: float = 0.95
    full: float = 0.5
    counterfactuals: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        positive("full", self.full)
        if not 0.5 <= self.confidence < 1:
            raise BadInput(f"confidence is {self.confidence}; give a probability in [0.5, 1)")

    def __call__(self, requests: Sequence[Request], features: Features) -> Judgement:
        """Attributions `ctr` (B, M, n) and `quality` (B, M) of the replies.

        Raises:
            BadInput: a request with ads in its replies has fewer than two no-ad replies.
        """
        to_query = self.relevance([r.ads for r in requests], [r.query for r in requests])
        norms = self.norms or Norms.of(features)
        shown = features.exposure.sum(2)
        moved = self.lift(requests, features)
        return Judgement(
            ctr=self.attributions(moved, features.exposure),
            quality=self.quality(requests, features, norms, to_query, shown),
            provenance={
                "encoder": self.encoder.model,
                "satisfaction": asdict(self.satisfaction),
                "norms": asdict(norms),
                **self.identity,
            },
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these attributions from others, in JSON's types."""
        text = json.dumps(
            {query: list(said) for query, said in (self.counterfactuals or {}).items()},
            sort_keys=True,
        )
        given = self.counterfactuals is not None
        return {
            "kind": "content",
            "confidence": self.confidence,
            "full": self.full,
            "counterfactuals": hashlib.sha256(text.encode()).hexdigest() if given else None,
        }

    def lift(self, requests: Sequence[Request], features: Features) -> Lift:
        """Lifts and noise of all replies and candidate ads, shown or not; see `Lift`."""
        B, M, n = features.exposure.shape
        bare = [_plain(text) for text in features.text]
        texts = self.encoder.embed(bare).reshape(B, M, -1)
        copies = self.encoder.embed([f"{ad.title}. {ad.text}" for r in requests for ad in r.ads])
        copies = copies.reshape(B, n, texts.shape[2])
        asked = self.encoder.embed([request.query for request in requests])
        own = copies - np.einsum("bnd,bd->bn", copies, asked)[:, :, None] * asked[:, None]
        near = np.einsum("bmd,bnd->bmn", texts, own)
        without = _without_ads(features)
        lift, noise = np.zeros((B, M, n)), np.zeros((B, n))
        for b in range(B):
            if not features.exposure[b].any():
                continue
            base = self._near_without(requests[b], near[b, without[b]], own[b])
            K = len(base)
            lift[b] = near[b] - base.mean(axis=0)
            spread = base.std(axis=0, ddof=1) * np.sqrt(1 + 1 / K)
            noise[b] = stdtrit(K - 1, self.confidence) * spread
        return Lift(lift, noise)

    def attributions(self, moved: Lift, exposure: Bools) -> Floats:
        """(B, M, n) attributions, 0 where the ad is not named."""
        credit = np.clip((moved.lift - moved.noise[:, None]) / self.full, 0, 1)
        return shapley_of_largest(np.where(exposure, credit, 0.0))

    def _near_without(self, request: Request, at_hand: Floats, own: Floats) -> Floats:
        """(K, n) likeness of the request's no-ad replies to its ads.

        Args:
            request: whose.
            at_hand: (K, n) that of the no-ad replies among the replies judged.
            own: (n, d) what its ads say beyond the query.
        """
        base = at_hand
        if self.counterfactuals is not None:
            said = self.counterfactuals.get(request.query, ())
            base = self.encoder.embed(list(map(_plain, said))) @ own.T if said else at_hand[:0]
        if len(base) < LEAST:
            raise BadInput(
                f"{len(base)} replies without ads to {request.query!r} are too few to compare "
                f"with; have {LEAST} (replies.generation guided writes some), or give them as "
                "counterfactuals"
            )
        return base


def counterfactuals_of(pool: ReplyPool) -> dict[str, list[str]]:
    """The no-ad replies of a recorded pool, by query: what `ContentUsers` compares with.

    Raises:
        BadInput: a pool without texts.
    """
    if pool.replies is None or pool.requests is None or "text" not in pool.replies.columns:
        raise BadInput("these replies have no texts to compare with; record them from an LLM")
    _, M, _ = pool.shape
    plain = ~pool.exposure.any(axis=2) & (pool.malformed == 0)
    found: dict[str, list[str]] = {query: [] for query in pool.requests["query"]}
    texts = pool.replies["text"].to_list()
    for b, query in enumerate(pool.requests["query"]):
        found[query] += [texts[b * M + j] for j in np.flatnonzero(plain[b])]
    return found


def shapley_of_largest(credit: Floats) -> Floats:
    """(..., n) Shapley value of the game `v(S) = max over S of credit_i`, for credits >= 0."""
    n = credit.shape[-1]
    order = np.argsort(credit, axis=-1, kind="stable")
    rising = np.take_along_axis(credit, order, axis=-1)
    steps = np.diff(rising, axis=-1, prepend=0.0)
    shares = np.cumsum(steps / np.arange(n, 0, -1), axis=-1)
    values = np.empty_like(credit)
    np.put_along_axis(values, order, shares, axis=-1)
    return values


def _without_ads(features: Features) -> Bools:
    """(B, M) replies that name no ad, not even in a marker that was taken apart."""
    return ~features.exposure.any(axis=2) & (features.malformed == 0)


def _plain(text: str) -> str:
    """What a reader without links sees."""
    return MENTION.sub(lambda match: match["title"], text)

"""Who asks and who clicks: a behavioural click model, and satisfaction from the same ingredients.

Clicks follow a position-based model (Craswell et al. 2008; Chuklin, Markov & de Rijke 2015): an ad
is examined, and an examined ad attracts,

    ctr = examined · attracted,
    examined  = carry_on ^ (sentences before the mention) · share_attention ^ (other ads shown)
    attracted = σ(intercept + query · cos(ad, query) + profile · cos(ad, user)
                  + nativeness · z(log-probability per token of the ad's sentence))

- Relevance to the query is the first driver of clicks on ads (Richardson, Dominowska & Ragno 2007);
  the profile adds what personalised advertising adds (Yan et al. 2009). Both are cosines of
  MiniLM sentence embeddings of title and text with query and profile.
- Users read from the top and may stop (`carry_on`; Joachims et al. 2005), and ads in one result
  compete for attention (`share_attention`; Kempe & Mahdian 2008; Gomes, Immorlica & Markakis 2009).
- A mention that reads as part of the answer is met more kindly than one that stands out
  (Wojdynski & Evans 2016); how likely the reference LLM finds its sentence stands in for that.

Satisfaction of a reply, in [0, 1], is σ of its relevance to the query, fluency, whether it is
complete, and a cost per ad that a relevant ad makes up for.

The coefficients are assumptions of the right order, not estimates: no public click log of ads in
LLM answers exists. They are parameters; what is checked is the ranking on human relevance labels
(`docs/results.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.llm.encoder import TextEncoder
from mechanisms.mentions import MENTION, AdCopy
from mechanisms.pool import Floats
from mechanisms.recording import Features, Judgement, Request


@dataclass(frozen=True)
class ClickCoefficients:
    """Coefficients of the click model; logits unless said otherwise.

    `carry_on` and `share_attention` are probabilities.
    """

    intercept: float = -3.5
    query: float = 4.0
    profile: float = 1.0
    nativeness: float = 0.3
    carry_on: float = 0.85
    share_attention: float = 0.8

    def __post_init__(self) -> None:
        for name in ("carry_on", "share_attention"):
            if not 0 < getattr(self, name) <= 1:
                raise BadInput(f"{name} is {getattr(self, name)}; give a probability in (0, 1]")


@dataclass(frozen=True)
class SatisfactionCoefficients:
    """Coefficients of satisfaction, in logits; fluency is standardised like nativeness."""

    intercept: float = -1.2
    query: float = 3.0
    fluency: float = 0.3
    complete: float = 0.6
    per_ad: float = -0.6
    ad_relevance: float = 0.8
    malformed: float = -1.0


@dataclass(frozen=True)
class Norms:
    """Mean and scale, in nats per token, by which log-probabilities are standardised.

    What a log-probability per token means depends on the LLM and its temperature, so users compare:
    a mention with the other mentions, a reply with the other replies, of the same recording.
    """

    nativeness_mean: float
    nativeness_scale: float
    fluency_mean: float
    fluency_scale: float

    @classmethod
    def of(cls, features: Features) -> Norms:
        """Those of a recording's replies; a scale of 1 where nothing varies."""
        return cls(
            *_mean_and_scale(features.nativeness[features.exposure]),
            *_mean_and_scale(features.fluency.ravel()),
        )


@dataclass(frozen=True, eq=False)
class BehaviouralUsers:
    """Turns measured replies into click probabilities and satisfaction; see the module's formulas.

    Call it with requests and their `Features`; it returns a `Judgement`. `norms` are those of the
    replies at hand unless given.
    """

    encoder: TextEncoder
    clicks: ClickCoefficients = ClickCoefficients()
    satisfaction: SatisfactionCoefficients = SatisfactionCoefficients()
    norms: Norms | None = None

    def __call__(self, requests: Sequence[Request], features: Features) -> Judgement:
        """`ctr` (B, M, n) and `quality` (B, M) of the replies."""
        to_query = self.relevance([r.ads for r in requests], [r.query for r in requests])
        to_user = self.relevance([r.ads for r in requests], [r.user for r in requests])
        norms = self.norms or Norms.of(features)
        shown = features.exposure.sum(2)
        return Judgement(
            ctr=self.click_probabilities(features, norms, to_query, to_user, shown),
            quality=self.quality(requests, features, norms, to_query, shown),
            provenance={
                "encoder": self.encoder.model,
                "clicks": asdict(self.clicks),
                "satisfaction": asdict(self.satisfaction),
                "norms": asdict(norms),
            },
        )

    def relevance(self, ads: Sequence[Sequence[AdCopy]], texts: Sequence[str]) -> Floats:
        """(B, n) cosine of each candidate ad (title and text) with its request's text."""
        B, n = len(ads), len(ads[0]) if ads else 0
        copies = self.encoder.embed([f"{ad.title}. {ad.text}" for row in ads for ad in row])
        return np.einsum(
            "bnd,bd->bn", copies.reshape(B, n, copies.shape[1]), self.encoder.embed(texts)
        )

    def attraction(self, to_query: Floats, to_user: Floats, nativeness: Floats) -> Floats:
        """σ(...) of the formula above; `nativeness` standardised; the arguments broadcast."""
        c = self.clicks
        return _sigmoid(
            c.intercept + c.query * to_query + c.profile * to_user + c.nativeness * nativeness
        )

    def click_probabilities(
        self, features: Features, norms: Norms, to_query: Floats, to_user: Floats, shown: Floats
    ) -> Floats:
        """(B, M, n) probability of a click on each ad; 0 where it is not shown."""
        c = self.clicks
        native = _standardise(features.nativeness, norms.nativeness_mean, norms.nativeness_scale)
        attracted = self.attraction(to_query[:, None], to_user[:, None], native)
        others = np.maximum(shown - 1, 0)[:, :, None]
        examined = c.carry_on**features.place * c.share_attention**others
        return np.where(features.exposure, examined * attracted, 0.0)

    def quality(
        self,
        requests: Sequence[Request],
        features: Features,
        norms: Norms,
        to_query: Floats,
        shown: Floats,
    ) -> Floats:
        """(B, M) satisfaction in [0, 1]."""
        s = self.satisfaction
        B, M, _ = features.exposure.shape
        bare = [MENTION.sub(lambda match: match["title"], text) for text in features.text]
        texts = self.encoder.embed(bare).reshape(B, M, -1)
        asked = self.encoder.embed([request.query for request in requests])
        fit = np.einsum("bmd,bd->bm", texts, asked)
        helpful = np.einsum("bmn,bn->bm", features.exposure.astype(float), to_query)
        return _sigmoid(
            s.intercept
            + s.query * fit
            + s.fluency * _standardise(features.fluency, norms.fluency_mean, norms.fluency_scale)
            + s.complete * features.complete
            + s.per_ad * shown
            + s.ad_relevance * helpful
            + s.malformed * features.malformed
        )


def _standardise(x: Floats, mean: float, scale: float) -> Floats:
    """z-score, kept within two so that no reply is judged by its log-probability alone."""
    return np.clip((x - mean) / scale, -2, 2)


def _mean_and_scale(x: Floats) -> tuple[float, float]:
    spread = float(x.std()) if x.size else 0.0
    return float(x.mean()) if x.size else 0.0, spread if spread > 1e-9 else 1.0


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))

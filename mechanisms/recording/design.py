"""What is asked of a recording, and what each stage of it hands to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.insertion import InsertionPolicy, Rules
from mechanisms.mentions import AdCopy
from mechanisms.pool import Bools, Floats

REFERENCE_PROMPT = "Question: {query}\n\nAnswer with practical advice in three short sentences."


@dataclass(frozen=True, eq=False)
class Request:
    """One query by one user, with its n candidate ads and the advertisers behind them."""

    query_id: str
    query: str
    user_id: str
    user: str
    ads: Sequence[AdCopy]
    advertisers: Sequence[int]


@dataclass(frozen=True)
class Design:
    """How the M candidate replies of a request are written.

    Attributes:
        replies: M.
        generation: `guided` or `context`.
        mention_rate: ρ of the reference policy, per decision.
        guided_rate: insertion probability of the condition `guided`, per decision.
        temperature: sampling temperature; all densities are at this temperature.
        rules: when replies offer a decision and when they end.
    """

    replies: int = 24
    generation: str = "guided"
    mention_rate: float = 0.1
    guided_rate: float = 0.35
    temperature: float = 0.3
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if self.generation not in ("guided", "context"):
            raise BadInput(
                f"generation {self.generation!r} is unknown; choose 'guided' or 'context'"
            )
        if self.replies < 1:
            raise BadInput(f"replies is {self.replies}; record at least one reply a request")
        for name in ("mention_rate", "guided_rate"):
            if not 0 < getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; give a probability in (0, 1)")

    def policies(self, ads: int) -> list[tuple[InsertionPolicy, int]]:
        """Conditions of guided insertion with their numbers of replies, summing to M.

        Half of the replies show a single ad in turn, a sixth none, the rest any. Of the replies of
        `single:i` the first inserts at its first decision, so that every ad has a reply that shows
        it alone; the others do so with probability one half and else at their second decision,
        which varies the place.
        """
        K, M = self.rules.decisions, self.replies
        single = M // (2 * ads) if ads else 0
        none = min(max(1, M // 6), M - single * ads) if ads else M
        conditions = [(InsertionPolicy("reference", np.zeros(K), np.zeros(ads)), none)]
        if guided := M - none - single * ads:
            rates = np.full(K, self.guided_rate)
            conditions.append((InsertionPolicy("guided", rates, np.ones(ads)), guided))
        at_once, sooner_or_later = np.ones(K), np.where(np.arange(K) == 0, 0.5, 1.0)
        for i, name in enumerate(f"single:{i}" for i in range(ads if single else 0)):
            only = (np.arange(ads) == i).astype(np.float64)
            conditions.append((InsertionPolicy(name, at_once, only), 1))
            if single > 1:
                conditions.append((InsertionPolicy(name, sooner_or_later, only), single - 1))
        return conditions


@dataclass(frozen=True, eq=False)
class Features:
    """What is measured about replies; a user model turns it into clicks and satisfaction.

    Attributes:
        text: (B * M) reply texts, request-major.
        exposure: (B, M, n) the ad is shown.
        nativeness: (B, M, n) mean log-probability per token, under the reference LLM, of the
            sentence that mentions the ad, in nats; 0 where not shown.
        place: (B, M, n) number of sentences before the mention; 0 where not shown.
        sentences: (B, M) sentences of the reply.
        fluency: (B, M) mean log-probability per free token under the reference LLM, in nats.
        complete: (B, M) the reply ends where a sentence does.
        malformed: (B, M) malformed mentions.
    """

    text: list[str]
    exposure: Bools
    nativeness: Floats
    place: Floats
    sentences: Floats
    fluency: Floats
    complete: Bools
    malformed: Floats


@dataclass(frozen=True, eq=False)
class Judgement:
    """What users do with replies: `ctr` (B, M, n) and satisfaction `quality` (B, M) in [0, 1].

    `provenance` says how they were arrived at; it goes into the pool's manifest.
    """

    ctr: Floats
    quality: Floats
    provenance: Mapping[str, Any] = field(default_factory=dict)


Users = Callable[[Sequence[Request], Features], Judgement]


@dataclass(frozen=True, eq=False)
class Written:
    """One reply as it was written.

    Attributes:
        text: as shown, mentions rendered.
        condition: the condition it was written under.
        log_free: log-probability of its free tokens under the reference LLM, in nats.
        fluency: the same per free token.
        nativeness: by ad mentioned, see `Features`.
        tokens: tokens written, mentions included.
        forged: attempts of the LLM at a mention of its own; taken apart in `text`.
        events: by decision, see `mechanisms.insertion`.
    """

    text: str
    condition: str
    log_free: float
    fluency: float
    nativeness: dict[int, float]
    tokens: int
    forged: int = 0
    events: Sequence[int] = ()

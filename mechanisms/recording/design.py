"""What is asked of a recording, and what each stage of it hands to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.mentions import AdCopy
from mechanisms.policies import Rules
from mechanisms.pool import Bools, Floats

GENERATIONS = ("reference", "guided", "context", "mixture", "auction", "token")


@dataclass(frozen=True, eq=False)
class Request:
    """One query by one user, with its n candidate ads and the advertisers behind them.

    `bids` (n) are those under which replies are to be written, for generation that depends on bids;
    None to draw a bid profile for every reply.
    """

    query_id: str
    query: str
    user_id: str
    user: str
    ads: Sequence[AdCopy]
    advertisers: Sequence[int]
    bids: Sequence[float] | None = None


@dataclass(frozen=True)
class Design:
    """How the M candidate replies of a request are written.

    Attributes:
        replies: M.
        generation: see `mechanisms.recording`.
        mention_rate: ρ of the reference policy, per decision.
        guided_rate: insertion probability of the other conditions, per decision.
        inline_rate: ε of the reference policy, per opening (`mechanisms.openings`). Above 0, titles
            that the LLM writes in its own words under a prompt that names the ads are mentions; at
            0 they are prose, which the reference LLM would hardly write.
        log_ratios: also score all replies under the LLM prompted on behalf of each advertiser.
        temperature: sampling temperature; all densities are at this temperature.
        rules: when replies offer a decision and when they end.
        ad_llm: how the LLM that writes for generation `auction` is asked, at which temperature it
            is sampled, and when its replies end. `temperature` is then of the LLM that says how
            fluent they are. None: it is asked as one that has not been trained.
    """

    replies: int = 24
    generation: str = "guided"
    mention_rate: float = 0.1
    guided_rate: float = 0.35
    inline_rate: float = 0.0
    log_ratios: bool = False
    temperature: float = 0.3
    rules: Rules = field(default_factory=Rules)
    ad_llm: AdLLM | None = None

    def __post_init__(self) -> None:
        if self.generation not in GENERATIONS:
            raise BadInput(
                f"generation {self.generation!r} is unknown; choose {', '.join(GENERATIONS)}"
            )
        if self.replies < 1:
            raise BadInput(f"replies is {self.replies}; record at least one reply a request")
        for name in ("mention_rate", "guided_rate"):
            if not 0 < getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; give a probability in (0, 1)")
        if not 0 <= self.inline_rate < 1:
            raise BadInput(f"inline_rate is {self.inline_rate}; give a probability in [0, 1)")
        if self.generation in ("auction", "token") and (self.log_ratios or self.inline_rate):
            name = "log_ratios" if self.log_ratios else "inline_rate"
            raise BadInput(
                f"generation {self.generation!r} has no {name}; leave it out, or choose another "
                "generation"
            )
        if self.ad_llm is not None and self.generation != "auction":
            raise BadInput(
                f"generation {self.generation!r} has no ad_llm; leave it out, or choose generation "
                "'auction'"
            )

    @property
    def writing(self) -> AdLLM:
        """Who writes for generation `auction`."""
        untrained = AdLLM(
            style=PromptStyle(), rules=self.rules, temperature=self.temperature, adapter=None
        )
        return self.ad_llm or untrained

    @property
    def described(self) -> dict[str, Any]:
        """The design in words and numbers; an Ad-LLM by what tells it from others."""
        said = asdict(replace(self, ad_llm=None))
        del said["ad_llm"]
        return said if self.ad_llm is None else said | {"ad_llm": self.ad_llm.identity}

    @property
    def weights_to(self) -> str:
        """What importance weights lead back to: the reference policy, equal bids, or nothing."""
        return {"auction": "none", "token": "equal-bids"}.get(self.generation, "reference")


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
        events: at decisions and openings, in their order; see `mechanisms.insertion`.
        raw: for generation `auction`, all that the LLM sampled, token by token: malformed markers,
            what is cut off, and its end of turn where it wrote one.
        broken_off: for generation `auction`, the LLM ran on, or in circles, until it was stopped.
    """

    text: str
    condition: str
    log_free: float
    fluency: float
    nativeness: dict[int, float]
    tokens: int
    forged: int = 0
    events: Sequence[int] = ()
    raw: Sequence[int] = ()
    broken_off: bool = False


class Recorded(NamedTuple):
    """What a way of writing hands to `record`: replies, densities (B, M), and extras (B, M, ...).

    `extras` become those of the pool.
    """

    written: list[list[Written]]
    log_ref: Floats
    log_gen: Floats
    extras: dict[str, Floats]

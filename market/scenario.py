"""A market described in YAML. Unknown keys are refused; every error is one line, `FILE: KEY: ...`.

`Scenario` says what there is: catalog, requests, replies, mechanism, population. What a scenario
leaves to chance (which queries, whose values) is drawn from its own `environment_seed`, so that
runs with different seeds meet the same market and share its recorded replies.
"""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError
from pydantic import PositiveFloat as Positive
from pydantic import PositiveInt as Count
from pydantic_core import PydanticCustomError

from agents.learners.registry import check_learner
from market.fields import FirstNamedSpec, Money, MoneyRange, Named, NamedSpec, RatioRange
from market.reading import as_yaml, read_yaml
from market.sections import Section, in_words
from market.training import TrainingSpec
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput, at, instead
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.pool import ReplyPool
from mechanisms.recording import Design
from mechanisms.registry import make_mechanism

if TYPE_CHECKING:
    from market.live import LiveReplies

BUNDLED = Path(__file__).with_name("data") / "scenarios"
"""Scenarios that come with the program; their names can be given instead of a path."""


class CatalogSpec(Section):
    """Where ads, users and queries come from.

    Attributes:
        source: `bundled`, or a folder of the bundled catalog's format or gem-bench's.
        categories: restrict ads and queries to these; None for all.
    """

    source: str = "bundled"
    categories: list[str] | None = None


class RequestsSpec(Section):
    """Which requests there are: `queries`, each with `ads` candidate ads.

    Attributes:
        source: of the queries: the `catalog`, by users drawn, or `generated`: the LLM of `replies`
            writes them, once, in the name of the catalog's users (`agents.queries`).
        queries: how many.
        ads: n, candidate ads of each.
    """

    source: Literal["catalog", "generated"] = "catalog"
    queries: Count = 24
    ads: Count = 4


class RepliesSpec(Section):
    """Where candidate replies come from.

    Attributes:
        source: `recorded` (an LLM writes them, once), `live` (it writes anew in every round, beside
            a recording that users and best responses go by), or `synthetic` (no LLM).
        model: name, directory or Hugging Face id of the LLM.
        engine: what runs it: `transformers`, `vllm`, or `openai` for a server.
        server: address of the OpenAI-compatible server, for engine `openai`; it serves the model at
            `temperature` (see `admarket doctor`).
        dtype: of its weights, `bf16` or `fp32`.
        per_request: M, candidate replies per request.
        generation: how they are written, see `mechanisms.recording`.
        mention_rate: ρ of the reference policy.
        guided_rate: insertion probability of the other conditions.
        inline_rate: ε of the reference policy: bare titles in mid-sentence.
        log_ratios: also score replies under the LLM prompted for each advertiser.
        temperature: sampling temperature.
        max_tokens: limit of a reply's length.
        ad_llm: the Ad-LLM that writes by generation `auction`, bundled or a folder that `admarket
            train` wrote, with prompt, temperature and rules of its own; None: `model` as it is.
            Mechanism `llm-auction` names the one that it needs.
        context_probe: requests on which `context` is tried too, to be told of in the manifest.
    """

    source: Literal["recorded", "live", "synthetic"] = "recorded"
    model: str = "smollm2-135m"
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    server: str | None = None
    dtype: Literal["bf16", "fp32"] = "bf16"
    per_request: Count = 24
    generation: Literal["guided", "reference", "context", "mixture", "auction", "token"] = "guided"
    mention_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    guided_rate: Annotated[float, Field(gt=0, lt=1)] = 0.35
    inline_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    log_ratios: bool = False
    temperature: Positive = 0.3
    max_tokens: Annotated[int, Field(ge=16)] = 96
    ad_llm: str | None = None
    context_probe: Annotated[int, Field(ge=0)] = 0

    def model_post_init(self, _: Any) -> None:
        """Refuse a server without its engine, the engine without a server, and idle Ad-LLMs."""
        if self.ad_llm is not None and self.generation != "auction":
            raise BadInput(
                f"ad_llm: is for generation auction, not {self.generation}; leave it out "
                "(mechanism llm-auction names its own)"
            )
        if self.server is None and self.engine == "openai":
            raise BadInput("server: is missing, and engine openai needs one; give its address")
        if self.server is not None and self.engine != "openai":
            raise BadInput(f"server: is for engine openai, not {self.engine}; drop one of the two")

    @property
    def design(self) -> Design:
        """The design of the recording."""
        from mechanisms.insertion import Rules

        return Design(
            replies=self.per_request,
            generation=self.generation,
            mention_rate=self.mention_rate,
            guided_rate=self.guided_rate,
            inline_rate=self.inline_rate,
            log_ratios=self.log_ratios,
            temperature=self.temperature,
            rules=Rules(max_tokens=self.max_tokens),
            ad_llm=None if self.ad_llm is None else AdLLM.load(self.ad_llm),
        )


class UsersSpec(Section):
    """Who reads replies, and how it is known what they do.

    Attributes:
        kind: `behavioural` (a click model, `agents.users`), `user-llm` (the LLM of `replies` plays
            them, `agents.judge`), or `content` (nothing is clicked: ads are paid for how far they
            move what the reply says, `agents.content`).
        mode: how the User-LLM is asked: `score` (yes or no, for small LLMs) or `json`.
    """

    kind: Literal["behavioural", "user-llm", "content"] = "behavioural"
    mode: Literal["score", "json"] = "score"


def _by_kind(given: Any) -> Any:
    if isinstance(given, str):
        return {"kind": given}
    if isinstance(given, dict | UsersSpec):
        return given
    raise PydanticCustomError("users", "give a kind, or {kind: ..., mode: ...}")


class GroupSpec(Section):
    """`count` advertisers of one kind; ranges are drawn from uniformly, one by one.

    Attributes:
        objective: `utility` or `value`.
        count: how many.
        value: value per click, in money.
        target_roi: least value per unit paid; for value maximizers only.
        budget: most that may be spent in a run; None for no limit.
        learner: how they bid.
    """

    objective: Literal["utility", "value"]
    count: Count
    value: MoneyRange = (1.0, 5.0)
    target_roi: RatioRange = (1.0, 1.0)
    budget: Money | None = None
    learner: NamedSpec = Named(name="truthful")

    def model_post_init(self, _: Any) -> None:
        """Refuse unknown learners, ranges upside down, and targets of those who have none."""
        with at("learner"):
            check_learner(self.learner.name, self.learner.parameters)
        for key in ("value", "target_roi"):
            low, high = getattr(self, key)
            if low > high:
                raise BadInput(f"{key}: has range [{low}, {high}]; give the lower end first")
        if self.objective == "utility" and self.target_roi != (1.0, 1.0):
            raise BadInput("target_roi: is given to utility maximizers, who have none; drop it")


class AdvertiserSpec(Section):
    """One advertiser as drawn from its group."""

    objective: Literal["utility", "value"]
    value: Positive
    target_roi: Positive
    budget: Positive | None
    learner: Named


class Scenario(Section):
    """A market: who takes part, what they compete for, under which mechanism, for how long.

    Attributes:
        name: names the results folder.
        rounds: rounds per run.
        requests_per_round: requests per round and replication, drawn with replacement.
        replications: R independent copies of the market, run together.
        mechanism: the market's mechanism.
        beside: further mechanisms that `admarket run` runs on the same requests and dice.
        users: who reads replies: behavioural, user-llm or content.
        population: groups of advertisers, N in all; by default six with hedge, six with pacing.
        environment_seed: draws queries, users and private values, and seeds the recording.
        training: how the Ad-LLM of its market is trained; None for the defaults.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "scenario"
    rounds: Count = 2000
    requests_per_round: Count = 16
    replications: Count = 4
    environment_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    catalog: CatalogSpec = CatalogSpec()
    requests: RequestsSpec = RequestsSpec()
    replies: RepliesSpec = RepliesSpec()
    users: Annotated[UsersSpec, BeforeValidator(_by_kind)] = UsersSpec()
    mechanism: FirstNamedSpec = Named(name="mosaic", parameters={"tau": 0.1})
    beside: list[NamedSpec] = Field([])
    population: list[GroupSpec] = Field(
        [
            GroupSpec(objective="utility", count=6, learner=Named(name="hedge")),
            GroupSpec(objective="value", count=6, learner=Named(name="pacing")),
        ],
        min_length=1,
    )
    training: TrainingSpec | None = None

    def model_post_init(self, _: Any) -> None:
        """Refuse what would only fail later: mechanisms, and sections that do not fit."""
        for number, arm in enumerate(self.arms):
            with at(f"beside.{number - 1}" if number else "mechanism"):
                mechanism = make_mechanism(arm.name, **arm.parameters)
                if arm.name in [other.name for other in self.arms[:number]]:
                    raise BadInput(f"{arm.name} is listed twice; list each mechanism once")
            self._refuse_replies_that_lack(mechanism)
        synthetic = self.replies.source == "synthetic"
        if synthetic and self.users.kind != "behavioural":
            raise BadInput(
                f"users: {self.users.kind} read replies, and synthetic ones have no text; set "
                "replies.source to recorded"
            )
        if synthetic and self.requests.source == "generated":
            raise BadInput(
                "requests.source: is generated, but synthetic replies answer no queries; set "
                "replies.source to recorded, or requests.source to catalog"
            )
        if self.requests.ads > self.num_advertisers:
            raise BadInput(
                f"requests.ads: is {self.requests.ads} but the population has "
                f"{self.num_advertisers} advertisers; have at most as many ads per request"
            )

    def _refuse_replies_that_lack(self, mechanism: Mechanism) -> None:
        """What a mechanism asks of replies is known before they are recorded."""
        name, spec, own = mechanism.name, self.replies, mechanism.generation
        by_log_ratio = getattr(mechanism, "reward", None) == "log-ratio"
        if spec.source == "synthetic" and (own or by_log_ratio):
            who = name if own else f"{name} with reward log-ratio"
            raise BadInput(
                f"replies.source: is synthetic, but {who} needs replies by an LLM; record them"
            )
        if own == "token" and spec.engine != "transformers":
            raise BadInput(
                f"replies.engine: is {spec.engine}, which gives no whole distributions to {name}; "
                "set it to transformers"
            )
        if own is None and spec.generation in ("auction", "token"):
            raise BadInput(
                f"replies.generation: is {spec.generation}, and {name} cannot trade on such "
                "replies; leave it out (mechanisms that need it get it anyway)"
            )
        if by_log_ratio and not spec.log_ratios:
            raise BadInput(
                f"replies.log_ratios: is false, but {name} has reward log-ratio; set it to true"
            )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a scenario from a YAML file, or a bundled one by its name.

        Raises:
            BadInput: one line that names the file, the key and the mend.

        >>> Scenario.from_yaml("synthetic").num_advertisers
        8
        """
        path = locate(path)
        given = read_yaml(path)
        if not given:
            raise BadInput(
                f"{path}: is empty; describe a market, or name the bundled scenario default"
            )
        return cls.from_dict({"name": path.stem, **given}, source=str(path))

    @classmethod
    def from_dict(cls, given: dict[str, Any], source: str = "scenario") -> Self:
        """Build a scenario from a dictionary; `source` names it in errors."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise BadInput(f"{source}: {in_words(error, given)}") from None

    def to_yaml(self) -> str:
        """The scenario as resolved, with every default written out."""
        return as_yaml(self.model_dump(mode="json"))

    def with_(self, **changes: Any) -> Self:
        """A copy with top-level keys replaced, validated again."""
        return type(self).from_dict({**self.model_dump(), **changes})

    @property
    def arms(self) -> tuple[Named, ...]:
        """The mechanism, and those beside it."""
        return (self.mechanism, *self.beside)

    @property
    def num_advertisers(self) -> int:
        """N."""
        return sum(group.count for group in self.population)

    @cached_property
    def advertisers(self) -> tuple[AdvertiserSpec, ...]:
        """(N) advertisers by index, in an order that mixes the groups over the catalog's ads."""
        rng = self.stream(0)
        drawn = []
        for group in self.population:
            values = rng.uniform(*group.value, size=group.count)
            targets = rng.uniform(*group.target_roi, size=group.count)
            for value, target in zip(values, targets, strict=True):
                drawn.append(
                    AdvertiserSpec(
                        objective=group.objective,
                        value=_few_digits(value),
                        target_roi=_few_digits(target),
                        budget=group.budget,
                        learner=group.learner,
                    )
                )
        return tuple(drawn[i] for i in rng.permutation(len(drawn)))

    def stream(self, purpose: int) -> np.random.Generator:
        """A generator for one of the environment's draws."""
        seed = np.random.SeedSequence(self.environment_seed, spawn_key=(purpose,))
        return np.random.default_rng(seed)

    def make_pool(self) -> ReplyPool:
        """The candidate replies: synthetic, from the cache, or recorded now."""
        from market.environment import make_pool

        return make_pool(self)

    def replies_for(self, mechanism: Mechanism, seed: int) -> tuple[ReplyPool, LiveReplies | None]:
        """What a market under `mechanism` trades on; see `market.live.replies_for`."""
        from market.live import replies_for

        return replies_for(self, mechanism, seed)


def _few_digits(drawn: float) -> float:
    """To four decimals; what is below 0.1 to four significant figures."""
    return round(float(drawn), max(4, 3 - math.floor(math.log10(drawn))))


def locate(path: str | Path) -> Path:
    """The scenario file at `path`, or the bundled one of that name."""
    if path == "":
        raise BadInput("a scenario is missing; give a file, or the name of a bundled one")
    given = Path(path)
    # as opposed to `given.exists()`, these are of any string
    if os.path.exists(given) and not os.path.isdir(given):
        return given
    bundled = BUNDLED / f"{given}.yaml"
    if given.name == str(given) and not given.suffix and os.path.exists(bundled):
        return bundled
    if os.path.isdir(given):
        raise BadInput(f"{given}: is a folder; give a scenario file, or the name of a bundled one")
    names = sorted(each.stem for each in BUNDLED.glob("*.yaml"))
    mend = instead(str(given), names, "give a path, or one of:")
    raise BadInput(f"{given!s:.200}: no such scenario file; {mend}")

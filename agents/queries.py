"""Questions that users ask: the User-LLM, given a profile and a topic, writes them.

LLM-Auction's simulation (arXiv 2512.10551) lets the User-LLM ask as well as click. For every user,
category and question wanted the LLM gets several tries, of which the first that pass are taken:

- one line, without markers, quotes or a label before it, up to its first question mark;
- of 4 words at least and 160 characters at most;
- not about the task ("this person", "a chatbot"), and no copy of the profile (six words in a row):
  small LLMs ask *about* the person;
- on topic, if a text encoder is given: cos(question, category) at least `NEAR`;
- not asked before, in the same words.

What fails is counted by reason. Where too few pass, there are fewer questions than asked for; the
result says how many.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mechanisms.checks import whole
from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.llm.encoder import TextEncoder
from mechanisms.llm.streams import derived_seed
from mechanisms.mentions import one_line
from mechanisms.pool import Floats

REFUSALS = (
    "no-question",
    "too-short",
    "too-long",
    "about-the-task",
    "copies-profile",
    "off-topic",
    "repeated",
)
"""Why a try is not taken; of several reasons, the first."""
WORDS, CHARACTERS, COPIED, NEAR = 4, 160, 6, 0.3
TOKENS = 48

_PROMPT = (
    "Person: {user}\n\nWrite one question that this person would ask a chatbot about {topic}. "
    "Write only the question."
)
_ANYTHING = "something to buy or to do"
_QUESTION = re.compile(r"[^?\n]*\?")
_LABEL = re.compile(r"^(?:[-*•>#\s]|\d+[.)]\s|(?:the\s+)?(?:question|q|a|user|person)\s*:)+", re.I)
_SPOKEN = re.compile(r"^.*[:,]\s*[\"“]")  # They might ask: "...
_TASK = re.compile(r"(?i)\bchatbot|\b(?:this|the) person\b|\bquestions?\b")
_QUOTES = "\"'“”‘’«»„`*_ "
_NO_MARKERS = str.maketrans("", "", "@[]")


class Profile(Protocol):
    """What is known of a user (`market.catalog.UserProfile`)."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class GeneratedQuery:
    """A question as a catalog has it, and who asked it."""

    id: str
    text: str
    category: str
    user_id: str


@dataclass(frozen=True)
class GeneratedQueries:
    """Questions, and what became of the tries.

    Attributes:
        queries: those taken, by user, then by category.
        tries: questions that the LLM wrote.
        refused: of these, by reason (all of `REFUSALS`); what is neither taken nor refused was not
            needed.
        missing: questions asked for but not found among the tries.
        provenance: model, prompt, seed and settings, in JSON types.
    """

    queries: tuple[GeneratedQuery, ...]
    tries: int
    refused: Mapping[str, int]
    missing: int
    provenance: Mapping[str, object]


def generated_queries(
    engine: Engine,
    users: Sequence[Profile],
    categories: Sequence[str],
    per_user: int,
    seed: int,
    *,
    tries: int = 4,
    temperature: float = 0.5,
    encoder: TextEncoder | None = None,
) -> GeneratedQueries:
    """Have the User-LLM write `per_user` questions of each user about each category.

    Args:
        engine: the User-LLM.
        users: profiles; their ids must differ.
        categories: topics, as plain words ("running shoes"); empty for one round about anything,
            with category "".
        per_user: questions per user and category.
        seed: the same seed, engine and arguments give the same questions.
        tries: per question wanted.
        temperature: of the LLM.
        encoder: judges whether a question is on topic; None to take it on trust.

    Raises:
        BadInput: no users, ids or categories that stand twice, or a number that cannot be.
    """
    whole("per_user", per_user, least=1)
    whole("tries", tries, least=1)
    _check_distinct("user ids", [user.id for user in users])
    _check_distinct("categories", categories)
    if not users:
        raise BadInput("there are no users to write questions; give at least one profile")
    asked = [(user, topic) for user in users for topic in categories or [""]]
    prompts = [query_prompt(user.description, topic) for user, topic in asked]
    samples = engine.generate(
        prompts,
        per_user * tries,
        max_new_tokens=TOKENS,
        temperature=temperature,
        seed=seed,
        # A user's questions do not depend on who else asks, nor about what else.
        keys=[derived_seed(seed, user.id, topic) for user, topic in asked],
    )
    queries: list[GeneratedQuery] = []
    refused: Counter[str] = Counter()
    for (user, topic), row in zip(asked, samples, strict=True):
        texts = [clean(engine.decode(sample.tokens)) for sample in row]
        near = _on_topic(texts, topic, encoder)
        earlier = {query.text.casefold() for query in queries}
        taken: list[str] = []
        for text, fits in zip(texts, near, strict=True):
            why = objection(text, user.description)
            if why is None and not fits:
                why = "off-topic"
            if why is None and text.casefold() in earlier:
                why = "repeated"
            if why is not None:
                refused[why] += 1
            elif len(taken) < per_user:
                taken.append(text)
                earlier.add(text.casefold())
        label = f"{user.id}-{_slug(topic)}" if topic else user.id
        queries += [
            GeneratedQuery(f"Asked-{label}-{k}", text, topic, user.id)
            for k, text in enumerate(taken, start=1)
        ]
    wanted = len(asked) * per_user
    return GeneratedQueries(
        queries=tuple(queries),
        tries=wanted * tries,
        refused={reason: refused[reason] for reason in REFUSALS},
        missing=wanted - len(queries),
        provenance={
            "model": engine.model,
            "prompt": _PROMPT,
            "seed": seed,
            "per_user": per_user,
            "tries": tries,
            "temperature": temperature,
            "encoder": encoder and encoder.model,
        },
    )


def query_prompt(profile: str, topic: str) -> str:
    """The user message that asks for a question of this person about `topic` ("": anything)."""
    user = json.dumps(one_line(profile), ensure_ascii=False)
    return _PROMPT.format(user=user, topic=one_line(topic) or _ANYTHING)


def clean(text: str) -> str:
    """What the LLM wrote as a question on one line: the first there is, or else the first line.

    Labels ("Question:"), list marks, quotes and what could pass for an ad marker are left out.
    """
    found = _QUESTION.search(text)
    line = found[0] if found else next(filter(str.strip, text.splitlines()), "")
    line = _SPOKEN.sub("", " ".join(line.translate(_NO_MARKERS).split()))
    line = _LABEL.sub("", line.lstrip(_QUOTES))
    return line.lstrip(_QUOTES) if found else line.strip(_QUOTES)


def objection(text: str, profile: str) -> str | None:
    """Why `text` is no question of someone with this profile; None if it is one."""
    words = _words(text)
    if not text.endswith("?"):
        return "no-question"
    if len(words) < WORDS:
        return "too-short"
    if len(text) > CHARACTERS:
        return "too-long"
    if _TASK.search(text):
        return "about-the-task"
    known = _words(profile)
    runs = {tuple(known[k : k + COPIED]) for k in range(len(known) - COPIED + 1)}
    if any(tuple(words[k : k + COPIED]) in runs for k in range(len(words) - COPIED + 1)):
        return "copies-profile"
    return None


def _on_topic(texts: Sequence[str], topic: str, encoder: TextEncoder | None) -> list[bool]:
    if encoder is None or not topic:
        return [True] * len(texts)
    embedded: Floats = encoder.embed([topic, *texts])
    return (embedded[1:] @ embedded[0] >= NEAR).tolist()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _slug(topic: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", topic).strip("-")


def _check_distinct(what: str, values: Sequence[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise BadInput(f"{what} hold {twice[0]!r} twice; give each once")

"""Ad mentions in reply text: `@Title@[Ad-ID]`, written by the platform, parsed strictly.

A mention counts only if id and title belong to the same candidate ad. Anything else that looks like
one (an unknown id, an altered title) is malformed: it is counted, and exposes nobody; `markers`
says of each what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mechanisms.errors import BadInput

MENTION = re.compile(r"@(?P<title>[^@\[\]\n]+)@\[(?P<id>[A-Za-z0-9_.-]+)\]")
_LOOKS_LIKE_ONE = re.compile(r"@[^@\n]*@\s*\[[^@\[\]\n]*\]?")
FAULTS = ("malformed", "unknown-id", "altered-title", "duplicate")
"""Why a marker counts for nobody; of several reasons, the first."""


class AdCopy(Protocol):
    """What the platform knows of a candidate ad.

    The title holds no `@`, `[` or `]`; the tagline says in a few words what the ad is for, and is
    empty or holds none of these, no brackets and no sentence end.
    """

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def tagline(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Parsed:
    """Mentions of a reply: candidate ads in order of appearance, and how many were malformed."""

    ads: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    malformed: int


@dataclass(frozen=True)
class Marker:
    """Something that looks like a mention.

    Attributes:
        span: where it stands in the text, (start, end).
        ad: the candidate ad that it mentions; None where it mentions nobody.
        fault: why it does not, one of `FAULTS`; None for a mention. `malformed`: it is not of the
            form `@Title@[Ad-ID]`. `unknown-id`: no candidate has the id. `altered-title`: the
            candidate with that id has another title. `duplicate`: it repeats a mention.
    """

    span: tuple[int, int]
    ad: int | None
    fault: str | None


def render(ad: AdCopy) -> str:
    """The mention of `ad` as it stands in a reply."""
    return f"@{ad.title}@[{ad.id}]"


def markers(text: str, candidates: Sequence[AdCopy]) -> list[Marker]:
    """All that looks like a mention in `text`, in order, and what is wrong with it."""
    index = {ad.id: i for i, ad in enumerate(candidates)}
    found: list[Marker] = []
    mentioned: set[int] = set()
    # Whatever MENTION matches, _LOOKS_LIKE_ONE matches at the same place: one scan finds both.
    for like in _LOOKS_LIKE_ONE.finditer(text):
        match = MENTION.fullmatch(like[0])
        ad = index.get(match["id"]) if match else None
        if match is None:
            fault = "malformed"
        elif ad is None:
            fault = "unknown-id"
        elif candidates[ad].title != match["title"]:
            fault = "altered-title"
        elif ad in mentioned:
            fault = "duplicate"
        else:
            fault = None
            mentioned.add(ad)
        found.append(Marker(like.span(), ad if fault is None else None, fault))
    return found


def parse(text: str, candidates: Sequence[AdCopy]) -> Parsed:
    """Find the mentions of candidate ads in `text`; a repeated mention is malformed too."""
    found = markers(text, candidates)
    shown = [(marker.ad, marker.span) for marker in found if marker.ad is not None]
    return Parsed(
        ads=tuple(ad for ad, _ in shown),
        spans=tuple(span for _, span in shown),
        malformed=len(found) - len(shown),
    )


def loose_ids(text: str, candidates: Sequence[AdCopy]) -> int:
    """How many ids stand in brackets outside of anything that looks like a mention.

    Of the candidates, or like theirs but for the digits: `Title[Ad-7]` is a mention gone wrong.
    """
    if not candidates:
        return 0
    shapes = {re.sub(r"\d+", r"\\d+", re.escape(ad.id)) for ad in candidates}
    loose = re.compile(rf"\[\s*(?:{'|'.join(sorted(shapes))})\s*\]")
    return len(loose.findall(_LOOKS_LIKE_ONE.sub("\n", text)))


def disarm(text: str) -> str:
    """Free text of the LLM, with anything that could pass for a mention taken apart."""
    return text.replace("@", "") if "@" in text else text


def forged(text: str) -> int:
    """How many times free text of the LLM tries to look like a mention, before it is disarmed."""
    return len(_LOOKS_LIKE_ONE.findall(text))


def one_line(text: str) -> str:
    """`text` of an ad or a query on one line and without markers, as it may stand in a prompt."""
    return disarm(" ".join(text.split()))


def check_copy(ad: AdCopy) -> None:
    """Refuse a title or tagline that mentions cannot hold.

    Raises:
        BadInput: it has an `@`, `[`, `]` or a line break.
    """
    for name, text in (("title", ad.title), ("tagline", ad.tagline)):
        if not set("@[]").isdisjoint(text) or text.splitlines() not in ([], [text]):
            raise BadInput(
                f"ad {ad.id!r} has a {name} with @, [, ] or a line break in it; leave these out"
            )


def without_mentions(text: str) -> str:
    """`text` with every mention replaced by a plain word, so that titles do not count as prose."""
    return MENTION.sub("this", text)


_CLOSERS = r"[\"')\]”’]*"
_ENDS_SENTENCE = re.compile(
    rf"(?<![A-Za-z.])(?P<word>[A-Za-z][A-Za-z'’-]*){_CLOSERS}[.!?]+{_CLOSERS}$"
)
_ABBREVIATIONS = frozenset(
    ("approx", "dr", "eg", "etc", "ie", "inc", "jr", "mr", "mrs", "ms", "no", "sr", "st", "vs")
)


def ends_sentence(text: str) -> bool:
    """Whether `text` ends where a sentence does; digits, initials and abbreviations do not count.

    Decided from the text so far alone, so that it can be a rule of a left-to-right policy.
    """
    match = _ENDS_SENTENCE.search(text[-40:])
    if match is None:
        return False
    word = match["word"].lower()
    return len(word) > 1 and word not in _ABBREVIATIONS

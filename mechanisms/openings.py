"""Where a bare title may stand in the middle of a reply, and finding those that an LLM wrote.

An *opening* is a place where the text so far asks for a name: behind "the", "try" or "such as", a
colon, a list marker, or a sentence end. There the reference policy inserts a bare title with a
small probability ε (`Design.inline_rate`); and an LLM that knows the ads may write one itself. Its
tokens then stand for the symbol: title tokens leave the density of the reference, and under the
LLM that wrote them the symbol has the probability of just these tokens (DESIGN 3.0).

Only a title in the tokenizer's own spelling counts, so that symbol and tokens are one to one; any
other is prose. So are titles that begin another one, since they may be on the way to it, and those
that do not read as their tokens do (control tokens are never encoded): their tokens are somebody
else's words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mechanisms.llm.base import Engine
from mechanisms.mentions import AdCopy, ends_sentence

_OPENING = re.compile(
    r"(?:(?:^|[\s(*])(?:the|a|an|your|our|try|trying|use|using|like|with|is|as|by|from|and|or|buy|get|"
    r"consider|considering|recommend|choose|choosing|including|called|of|for)|[:\n*-]\s*|\d\.)$",
    re.IGNORECASE,
)


def is_opening(text: str) -> bool:
    """Whether a bare title may follow `text`; decided from the text so far alone."""
    tail = text[-40:]
    return bool(_OPENING.search(tail)) or ends_sentence(tail)


class Title(NamedTuple):
    """A title as tokens, behind a space of its own or not; `true` if these read as the title."""

    spaced: list[int]
    bare: list[int]
    true: bool

    @classmethod
    def of(cls, engine: Engine, ad: AdCopy) -> Title:
        """In the spelling of the engine's tokenizer."""
        bare = engine.encode(ad.title)
        true = engine.decode(bare).split() == ad.title.split()
        return cls(engine.encode(f" {ad.title}"), bare, true)

    def behind(self, text: str) -> list[int]:
        """The tokens by which `text` goes on with this title."""
        return self.bare if not text or text[-1].isspace() else self.spaced


def title_at_end(
    engine: Engine, tokens: Sequence[int], titles: Sequence[Title], openings: Collection[int]
) -> tuple[int, int] | None:
    """`(ad, length)` of the longest title that `tokens` end with, if it stands at an opening.

    Args:
        engine: decodes.
        tokens: the reply so far.
        titles: by ad.
        openings: numbers of tokens behind which there was an opening.
    """
    longest = None
    for ad, title in enumerate(titles):
        for spelled in (title.spaced, title.bare) if title.true else ():
            start, length = len(tokens) - len(spelled), len(spelled)
            if start not in openings or list(tokens[start:]) != spelled:
                continue
            before = engine.decode(tokens[max(start - 16, 0) : start])
            if title.behind(before) != spelled or _begins_another(title, titles):
                continue
            if longest is None or length > longest[1]:
                longest = ad, length
    return longest


def _begins_another(title: Title, titles: Sequence[Title]) -> bool:
    return any(
        len(longer) > len(mine) and longer[: len(mine)] == mine
        for other in titles
        if other.true
        for mine, longer in ((title.spaced, other.spaced), (title.bare, other.bare))
    )

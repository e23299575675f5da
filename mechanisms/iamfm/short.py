"""Short replies: the cheap and biased level of a recorded pool.

A short reply is the full one cut behind its first decision and what was inserted there or, if that
is not reached within 40 tokens of the LLM, where these end. It tells of less than the truth, and
not the same of all: ads that come later are not seen, a first ad is seen without the rival that
would come after it (so it is clicked more), and satisfaction is that of half an answer. Users judge
short replies anew, as they stand; what is known of the whole reply only (how fluent it is, and the
sentence of its ad) is taken from there.

How many tokens a short reply has is read off its share of the characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.iamfm.reweighing import insertions
from mechanisms.mentions import MENTION, ends_sentence, without_mentions
from mechanisms.policies import UNREACHED
from mechanisms.pool import ReplyPool
from mechanisms.recording.design import Request, Users, Written
from mechanisms.recording.measure import measure
from mechanisms.recording.writing import close

SHORT_TOKENS = 40
"""Most tokens that the LLM writes of a short reply; a mention comes on top, as of a full one."""
SHORT = ("short_ctr", "short_quality", "short_tokens")
"""Extra arrays of a pool with short replies: (B, M, n), (B, M), (B, M)."""
_STOP = re.compile(r"[.!?]+[\"')\]”’]*")
_BEHIND = re.compile(r"(?: \([^()\n]*\))?,?")


def with_short(
    pool: ReplyPool, requests: Sequence[Request], users: Users, limit: int = SHORT_TOKENS
) -> ReplyPool:
    """The pool with the level `short`: its replies cut short, and judged by the users as they are.

    Args:
        pool: recorded by guided insertion.
        requests: those it was recorded from, in order.
        users: who judged it, by the same norms (`agents.users.Norms`), not by the short replies'.
        limit: see `SHORT_TOKENS`.

    Raises:
        BadInput: another kind of pool, or other requests.
    """
    insertions(pool)
    if pool.index is not None:
        raise BadInput("short replies are cut from a whole pool, not from some of its requests")
    asked = None if pool.requests is None else pool.requests["query"].to_list()
    if asked != [request.query for request in requests]:
        raise BadInput("these are not the requests that the pool was recorded from; give those")
    B, M, _ = pool.shape
    names = ("text", "events", "tokens", "condition", "log_free", "fluency", "nativeness")
    written = [
        _written_short(limit, *row, forged=int(forged))
        for row, forged in zip(
            pool.replies.select(names).iter_rows(), pool.malformed.ravel(), strict=True
        )
    ]
    by_request = [written[b * M : (b + 1) * M] for b in range(B)]
    judged = users(requests, measure(requests, by_request))
    tokens = np.array([reply.tokens for reply in written], dtype=np.float64).reshape(B, M)
    found = dict(zip(SHORT, (judged.ctr, judged.quality, tokens), strict=True))
    return replace(pool, extras={**pool.extras, **found})


def cut_short(text: str, first: int, tokens: int, limit: int) -> tuple[str, int]:
    """A reply up to its first decision, with what was inserted there.

    Args:
        text: as shown.
        first: event at its first decision, see `mechanisms.policies`.
        tokens: of the whole reply, mentions included.
        limit: most tokens that the LLM may write.

    Returns:
        The text, ending with a full stop or clause as replies that break off do, and its tokens,
        by its share of the characters that the LLM has read.
    """
    read = max(len(_as_read(text)), 1)
    mention = MENTION.search(text) if first >= 0 else None
    written = text[: mention.start()] if mention else text
    if first == UNREACHED:
        sentence = len(text)
    else:
        sentence = next(
            (end for end in _stops(written) if ends_sentence(without_mentions(text[:end]))),
            len(written),
        )
    if sentence / read * tokens > limit:
        return close(text[: int(limit / tokens * read)].strip()), limit
    end = sentence
    if mention:
        # what the ad is for, in parentheses, and the comma of the phrase
        end = mention.end() + len(_BEHIND.match(text, mention.end())[0])
    part = text[:end]
    return close(part.strip()), min(math.ceil(len(_as_read(part)) / read * tokens), tokens)


def _written_short(
    limit: int,
    text: str,
    events: list[int],
    tokens: int,
    condition: str,
    log_free: float,
    fluency: float,
    nativeness: list[float],
    *,
    forged: int,
) -> Written:
    part, cost = cut_short(text, events[0], tokens, limit)
    native = {} if events[0] < 0 else {events[0]: nativeness[events[0]]}
    return Written(part, condition, log_free, fluency, native, cost, forged)


def _stops(text: str) -> list[int]:
    return [match.end() for match in _STOP.finditer(text)]


def _as_read(text: str) -> str:
    """As the LLM has read it: with plain titles."""
    return MENTION.sub(lambda match: match["title"], text)

"""What the Ad-LLM reads: query, profile, and a JSON list of ads with bids (arXiv 2512.10551).

All of it stands in the user turn, behind two worked examples, in a form that small LLMs can follow:
a profile beside the question is what SmolLM2-135M then writes about, so it stands far from it.

Ads are data. An ad enters as JSON strings on one line, so it cannot end its entry or add another;
and without `@`, so that an LLM that recites its list of ads shows nobody. The examples' products
are no candidates: an LLM that recites them writes a malformed mention.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from mechanisms.mentions import AdCopy, one_line
from mechanisms.pool import Floats, Ints

_TASK = (
    "Answer questions in three short sentences of practical advice, and mention one of the listed "
    "products that fits and has a high bid, written as @title@[id]. The reader: {profile}"
)
# question; title, id, about and bid of each product; answer
_EXAMPLES = (
    (
        "How do I keep my desk tidy?",
        (
            ("Pinewood Desk Tray", "Ad-901", "a tray with three layers for papers", 90),
            ("Swift Running Socks", "Ad-902", "socks for long runs", 35),
        ),
        "Clear your desk every evening. You could try @Pinewood Desk Tray@[Ad-901], which keeps "
        "papers in three layers. Put cables in a box under the desk.",
    ),
    (
        "What is a quick breakfast?",
        (
            ("Harbor Phone Case", "Ad-903", "a case that survives falls", 20),
            ("Morning Oat Jar", "Ad-904", "a jar for overnight oats", 70),
        ),
        "Soak oats in milk the night before. You could try @Morning Oat Jar@[Ad-904], which keeps "
        "them fresh until the morning. Add fruit before you eat.",
    ),
)


def auction_prompt(query: str, profile: str, ads: Sequence[AdCopy], bids: Sequence[float]) -> str:
    """The user message of the Ad-LLM.

    Args:
        query: what the user asks.
        profile: who the user is.
        ads: n candidate ads.
        bids: (n,) bids, of which the LLM reads `shown_bids`.
    """
    shown = shown_bids(np.asarray(bids, dtype=np.float64)).tolist()
    entries = [
        (one_line(ad.title), one_line(ad.id), one_line(ad.tagline or ad.text), bid)
        for ad, bid in zip(ads, shown, strict=True)
    ]
    worked = [f"{_case(asked, listed)} {answer}" for asked, listed, answer in _EXAMPLES]
    task = _TASK.format(profile=one_line(profile))
    return "\n\n".join([task, *worked, _case(one_line(query), entries)])


def shown_bids(bids: Floats) -> Ints:
    """(..., n) bids as the LLM reads them: whole numbers 1..100 relative to the highest bid.

    Only ratios count, so that the reply does not depend on the unit of money. 1 is the least there
    is, also for a bid of 0; where all are 0 everyone reads 1.
    """
    top = bids.max(axis=-1, keepdims=True, initial=0.0)
    relative = np.divide(bids, top, out=np.zeros_like(bids), where=top > 0)
    return np.maximum(np.rint(100 * relative), 1).astype(np.int64)


def _case(query: str, entries: Sequence[tuple[str, str, str, int]]) -> str:
    listed = ", ".join(
        json.dumps({"bid": bid, "about": about, "title": title, "id": id_}, ensure_ascii=False)
        for title, id_, about, bid in entries
    )
    return f"Products: [{listed}]\nQuestion: {query}\nAnswer:"

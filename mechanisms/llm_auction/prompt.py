"""What the Ad-LLM reads: query, profile, and a JSON list of ads with bids (arXiv 2512.10551).

All of it stands in the user turn. Two layouts:

- `full`: task, two worked examples of the format `@Title@[Ad-ID]`, then the case. An LLM that has
  not been trained needs it (a profile beside the question is what SmolLM2-135M then writes about,
  so it stands far from it).
- `compact`: the case and a line of task, a third of the tokens. What the format is, the LLM learns.

How bids enter is a `PromptStyle` too, since small LLMs hardly read numbers (*bid blindness*).

Ads are data. An ad enters as JSON strings on one line, so it cannot end its entry or add another;
without `@`, so that an LLM that recites its list of ads shows nobody; and without the marks or
symbols that stand for bids (a title that has them is refused: copied without, it would be another).
The examples' products are no candidates: an LLM that recites them writes a malformed mention.

Tallies and symbols tell eleven levels apart. Between these an auction by such an LLM does not
answer to a bid, so the continuity that LLM-Auction's theorem 4.3 assumes holds in the mean over the
others' bids at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.mentions import AdCopy, one_line
from mechanisms.pool import Floats, Ints

LAYOUTS = ("full", "compact")
BID_CODES = ("digits", "ranks", "tally", "embedding")
SYMBOLS = "数下方有件了是型取例接"
"""One token each, in the LLMs that we know: bid levels 0, 10, ..., 100 of the code `embedding`."""

_TASK = (
    "Answer questions in three short sentences of practical advice, and mention one of the listed "
    "products that fits and has a high bid, written as @title@[id]. The reader: {profile}"
)
_COMPACT = "Answer in two sentences, with one fitting ad of a high bid as @title@[id]."
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


@dataclass(frozen=True)
class PromptStyle:
    """How a request and its bids become a user message.

    Attributes:
        layout: `full` or `compact`, see the head of this module.
        bids: `digits` 1..100; `ranks` 1 (highest) to n; `tally`, one mark for every ten of a bid;
            or `embedding`, one symbol per bid level whose embedding is learned.
        ordered: list the ads by falling bid (ties as given) instead of as given.
    """

    layout: str = "full"
    bids: str = "digits"
    ordered: bool = False

    def __post_init__(self) -> None:
        for name, known in (("layout", LAYOUTS), ("bids", BID_CODES)):
            if getattr(self, name) not in known:
                raise BadInput(
                    f"{name} {getattr(self, name)!r} of the Ad-LLM's prompt is unknown; choose "
                    f"{', '.join(known)}"
                )

    def message(
        self, query: str, profile: str, ads: Sequence[AdCopy], bids: Sequence[float]
    ) -> str:
        """The user message of the Ad-LLM.

        Args:
            query: what the user asks.
            profile: who the user is.
            ads: n candidate ads.
            bids: (n,) bids, of which the LLM reads `shown_bids`.
        """
        shown = shown_bids(np.asarray(bids, dtype=np.float64))
        codes = self.codes(shown)
        order = np.argsort(-shown, kind="stable") if self.ordered else np.arange(len(shown))
        listed = [(ads[i], codes[i]) for i in order]
        entries = [
            (self._title(ad), self._data(ad.id), self._data(ad.tagline or ad.text), code)
            for ad, code in listed
        ]
        if self.layout == "compact":
            lines = [json.dumps([code, *each], ensure_ascii=False) for *each, code in entries]
            case = [
                f"Question: {self._data(query)}",
                f"Reader: {self._data(profile)}",
                "Ads:",
                *lines,
            ]
            return "\n".join([*case, _COMPACT])
        worked = [f"{_case(asked, self._coded(ads))} {answer}" for asked, ads, answer in _EXAMPLES]
        task = _TASK.format(profile=self._data(profile))
        return "\n\n".join([task, *worked, _case(self._data(query), entries)])

    def codes(self, shown: Ints) -> list[int | str]:
        """(n,) how the LLM reads bids `shown` (n,) of 1..100."""
        if self.bids == "digits":
            return shown.tolist()
        if self.bids == "ranks":
            return [1 + int((shown > bid).sum()) for bid in shown]
        levels = np.rint(shown / 10).astype(int).tolist()
        if self.bids == "tally":
            return ["+ " * level for level in levels]
        return [SYMBOLS[level] for level in levels]

    def _data(self, text: str) -> str:
        """Text of an ad, a query or a user, as it may stand in a prompt."""
        plain = one_line(text)
        if self.bids == "tally":
            return _TALLIES.sub("+", plain)
        return plain.translate(_NO_SYMBOLS) if self.bids == "embedding" else plain

    def _title(self, ad: AdCopy) -> str:
        title = self._data(ad.title)
        if title != one_line(ad.title):
            raise BadInput(
                f"title {ad.title!r} of ad {ad.id!r} holds what stands for bids where they are "
                f"shown by {self.bids}; change the title, or show bids in another way"
            )
        return title

    def _coded(
        self, products: Sequence[tuple[str, str, str, int]]
    ) -> list[tuple[str, str, str, int | str]]:
        codes = self.codes(np.array([bid for *_, bid in products]))
        return [(*each[:3], code) for each, code in zip(products, codes, strict=True)]


def auction_prompt(query: str, profile: str, ads: Sequence[AdCopy], bids: Sequence[float]) -> str:
    """The user message of an Ad-LLM that has not been trained: `PromptStyle()`."""
    return PromptStyle().message(query, profile, ads, bids)


def shown_bids(bids: Floats) -> Ints:
    """(..., n) bids as the LLM reads them: whole numbers 1..100 relative to the highest bid.

    Only ratios count, so that the reply does not depend on the unit of money. 1 is the least there
    is, also for a bid of 0; where all are 0 everyone reads 1.
    """
    top = bids.max(axis=-1, keepdims=True, initial=0.0)
    relative = np.divide(bids, top, out=np.zeros_like(bids), where=top > 0)
    return np.maximum(np.rint(100 * relative), 1).astype(np.int64)


_TALLIES = re.compile(r"\+(?:\s+\+)+")
_NO_SYMBOLS = str.maketrans("", "", SYMBOLS)


def _case(query: str, entries: Sequence[tuple[str, str, str, int | str]]) -> str:
    listed = ", ".join(
        json.dumps({"bid": bid, "about": about, "title": title, "id": id_}, ensure_ascii=False)
        for title, id_, about, bid in entries
    )
    return f"Products: [{listed}]\nQuestion: {query}\nAnswer:"

"""Format compliance: how often an Ad-LLM writes mentions as it should (arXiv 2512.10551, Eq. 8).

A reply is *well-formed* if nothing in it looks like a mention without being one; a reply without
any mention is well-formed too. It *complies* if besides it mentions at least one candidate ad, and
no more than it may. What is counted is the LLM's own text: in a reply as it is shown, whatever is
not a mention has been taken apart (`mechanisms.mentions.disarm`).

Shares come with Wilson's score interval (Wilson 1927),

    (p + z²/2N ± z·√(p(1 - p)/N + z²/4N²)) / (1 + z²/N),     z = 1.96,

which keeps its coverage where a share is near 1, as it should be here; it takes replies to be
independent, so give it one reply per request where replies to a request are alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.checks import whole
from mechanisms.errors import BadInput
from mechanisms.mentions import FAULTS, AdCopy, markers

Z = 1.959964  # 97.5 % quantile of the standard normal distribution


class Share(NamedTuple):
    """`count` of `total` with a 95 % interval; `value` is NaN of nothing, and anything may be."""

    count: int
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def share(count: int, total: int) -> Share:
    """A share with Wilson's 95 % interval."""
    if total == 0:
        return Share(0, 0, float("nan"), 0.0, 1.0)
    p, z2 = count / total, Z**2 / total
    centre = (p + z2 / 2) / (1 + z2)
    reach = Z * np.sqrt(p * (1 - p) / total + z2 / total / 4) / (1 + z2)
    # Rounding must not put the ends beyond what is possible, nor beyond the share itself.
    low, high = min(max(centre - reach, 0.0), p), max(min(centre + reach, 1.0), p)
    return Share(count, total, p, float(low), float(high))


@dataclass(frozen=True)
class FormatCompliance:
    """What an Ad-LLM's replies look like.

    Attributes:
        well_formed: replies with nothing that looks like a mention but is none.
        mentions: well-formed replies that mention 1..max_ads candidate ads.
        faults: things that look like a mention but are none, by reason (all of
            `mechanisms.mentions.FAULTS`); None where only their number is known.
        fragments: replies with a piece of a marker that is too broken to look like one: a
            candidate's title behind an `@`, or its id in brackets. Not a fault; None if not known.
        max_ads: see `mentions`.
    """

    well_formed: Share
    mentions: Share
    faults: Mapping[str, int] | None
    fragments: Share | None
    max_ads: int

    @classmethod
    def of_texts(
        cls,
        texts: Sequence[str],
        candidates: Sequence[Sequence[AdCopy]],
        max_ads: int = 1,
    ) -> FormatCompliance:
        """Of texts as the LLM wrote them, each with the candidate ads of its request.

        Raises:
            BadInput: not one list of ads per text, or `max_ads` below 1.
        """
        if len(texts) != len(candidates):
            raise BadInput(
                f"{len(texts)} texts come with {len(candidates)} lists of ads; give one each"
            )
        found = [markers(text, ads) for text, ads in zip(texts, candidates, strict=True)]
        shown = [sum(marker.ad is not None for marker in row) for row in found]
        faulty = [len(row) - count for row, count in zip(found, shown, strict=True)]
        counted = Counter(marker.fault for row in found for marker in row)
        broken = (
            _has_fragment(text, [marker.span for marker in row], ads)
            for text, row, ads in zip(texts, found, candidates, strict=True)
        )
        return cls(
            *_shares(shown, faulty, max_ads),
            faults={reason: counted[reason] for reason in FAULTS},
            fragments=share(sum(broken), len(texts)),
            max_ads=max_ads,
        )

    @classmethod
    def of_counts(
        cls, shown: ArrayLike, malformed: ArrayLike, max_ads: int = 1
    ) -> FormatCompliance:
        """Of what a recording keeps: ads shown and malformed mentions, both of one shape.

        A pool gives `pool.exposure.sum(2)` and `pool.malformed`.

        Raises:
            BadInput: different shapes, or `max_ads` below 1.
        """
        ads, bad = np.asarray(shown), np.asarray(malformed)
        if ads.shape != bad.shape:
            raise BadInput(
                f"ads shown have shape {ads.shape}, malformed mentions {bad.shape}; give one shape"
            )
        return cls(*_shares(ads, bad, max_ads), faults=None, fragments=None, max_ads=max_ads)


def _shares(shown: ArrayLike, faulty: ArrayLike, max_ads: int) -> tuple[Share, Share]:
    whole("max_ads", max_ads, least=1)
    ads, clean = np.ravel(shown), np.ravel(faulty) == 0
    comply = clean & (ads >= 1) & (ads <= max_ads)
    return share(int(clean.sum()), ads.size), share(int(comply.sum()), ads.size)


def _has_fragment(
    text: str, spans: Iterable[tuple[int, int]], candidates: Sequence[AdCopy]
) -> bool:
    at, rest = 0, []
    for start, end in spans:
        rest.append(text[at:start])
        at = end
    # A line break, so that what stands on both sides of a marker does not become one.
    left = "\n".join([*rest, text[at:]])
    return any(
        f"@{ad.title}" in left or re.search(rf"[\[({{]\s*{re.escape(ad.id)}\s*[\])}}]", left)
        for ad in candidates
    )

"""Format compliance: how often an Ad-LLM writes mentions as it should (arXiv 2512.10551, Eq. 8).

A reply is *well-formed* if nothing in it looks like a mention without being one; a reply without
any mention is well-formed too. It *complies* if besides it mentions at least one candidate ad, and
no more than it may. What counts is the LLM's own text, as a recording counts it
(`ReplyPool.malformed`): in a reply as it is shown, whatever is not a mention has been taken apart.

Shares come with Wilson's score interval (Wilson 1927),

    (p + z²/2N ± z·√(p(1 - p)/N + z²/4N²)) / (1 + z²/N),     z = 1.96,

which keeps its coverage where a share is near 1, as it should be here; it takes what is counted to
be independent: where replies to a request are alike, N is the number of requests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.pool import Bools

Z = 1.959964  # 97.5 % quantile of the standard normal distribution


class Share(NamedTuple):
    """`count` of `total` with a 95 % interval; `value` is NaN of nothing, and anything may be."""

    count: float
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def share(count: float, total: int) -> Share:
    """A share with Wilson's 95 % interval; `count` may be a sum of shares."""
    if total == 0:
        return Share(0, 0, float("nan"), 0.0, 1.0)
    p, z2 = count / total, Z**2 / total
    centre = (p + z2 / 2) / (1 + z2)
    reach = Z * np.sqrt(p * (1 - p) / total + z2 / total / 4) / (1 + z2)
    # Rounding must not put the ends beyond what is possible, nor beyond the share itself.
    low, high = min(max(centre - reach, 0.0), p), max(min(centre + reach, 1.0), p)
    return Share(count, total, p, float(low), float(high))


def complies(ads: ArrayLike, malformed: ArrayLike, max_ads: int = 1) -> Bools:
    """Whether replies that show `ads` ads comply, `malformed` being what is malformed in them."""
    ads = np.asarray(ads)
    return (np.asarray(malformed) == 0) & (ads >= 1) & (ads <= max_ads)

"""Insertion policies: what a condition inserts at its decisions, and how probable that was.

The mathematics of `mechanisms.insertion` without any writing: rules that all policies share, rates
and shares of one policy, and the density of a mixture of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechanisms.pool import Bools, Floats, Ints

PHRASES = (
    " One good option is {ad},",
    " You could try {ad},",
    " Many people like {ad},",
    " It is worth looking at {ad},",
)
UNREACHED, NOTHING = -2, -1
"""Events at a decision: not reached, reached and nothing inserted; else the ad inserted."""


@dataclass(frozen=True)
class Rules:
    """What is common to all policies: when there is a decision, and when a reply ends.

    Attributes:
        sentences: a reply ends with the boundary that completes this many sentences, unless a
            mention is inserted there; it then ends with the sentence of the mention.
        mentions: at most so many mentions in a reply.
        max_tokens: limit of the tokens that the LLM writes; mentions come on top, so that the
            length of an ad's title takes no room from its rivals.
        room: tokens the LLM must have left where a mention is inserted, to finish its sentence.
        loop: a reply ends where the LLM repeats its last so many tokens from earlier in the reply.
    """

    sentences: int = 3
    mentions: int = 2
    max_tokens: int = 96
    room: int = 8
    loop: int = 6

    @property
    def decisions(self) -> int:
        """K, the number of decisions a reply can have."""
        return self.sentences


@dataclass(frozen=True, eq=False)
class InsertionPolicy:
    """Insertion rates of one condition.

    Attributes:
        name: the condition (`reference`, `guided`, `single:2`, ...).
        rates: (K,) probability to insert at each decision, if an ad with a share is left.
        shares: (n,) relative frequency of the ads; 0 for an ad that is never inserted.
        inline: probability ε to insert a bare title at an opening, if an ad with a share is left.
        own_words: the LLM knows the ads: titles that it writes itself at an opening are mentions,
            and no other bare titles are inserted.
    """

    name: str
    rates: Floats
    shares: Floats
    inline: float = 0.0
    own_words: bool = False

    def rate(self, decision: Ints | int, share: Floats | float) -> Floats | float:
        """Probability to insert at these decisions, where ads of `share` in all are left."""
        return self.rates[np.minimum(decision, len(self.rates) - 1)]

    def log_density(self, events: Ints, openings: Bools | None = None) -> Floats:
        """(M,) log-probability of `events` (M, K) under this policy, in nats; −inf if impossible.

        Args:
            events: in their order, UNREACHED, NOTHING, or the index of the ad inserted.
            openings: (M, K) the event was at an opening, not at a decision; default none was. In
                one's own words, nothing is counted there: the tokens carry the probability.
        """
        M, K = events.shape
        openings = np.zeros((M, K), dtype=bool) if openings is None else openings
        total = np.zeros(M)
        # One share more, for nobody: there may be no ads.
        left = np.tile(np.append(self.shares, 0.0), (M, 1))
        rows = np.arange(M)
        decision = np.maximum(np.cumsum(~openings, axis=1) - 1, 0)
        with np.errstate(divide="ignore"):
            for t in range(K):
                event, inline = events[:, t], openings[:, t]
                open_share = left.sum(axis=1)
                planned = self.rate(decision[:, t], open_share)
                rate = np.where(open_share > 0, np.where(inline, self.inline, planned), 0.0)
                ad = np.maximum(event, 0)
                share = left[rows, ad] / np.where(open_share > 0, open_share, 1.0)
                inserted = np.log(rate * share / np.where(inline, 1, len(PHRASES)))
                step = np.where(event >= 0, inserted, np.log1p(-rate))
                silent = (event == UNREACHED) | (inline & self.own_words)
                total += np.where(silent, 0.0, step)
                left[rows[event >= 0], event[event >= 0]] = 0.0
        return total


def reference_policy(
    ads: int, rules: Rules, mention_rate: float, inline_rate: float = 0.0
) -> InsertionPolicy:
    """The reference: `mention_rate` (ρ) at every decision, `inline_rate` (ε) at every opening.

    Ads are uniform.
    """
    rates = np.full(rules.decisions, mention_rate)
    return InsertionPolicy("reference", rates, np.ones(ads), inline=inline_rate)


def mixture_log_density(log_densities: Floats, counts: Sequence[int]) -> Floats:
    """(M,) log-density of replies under the mixture of C conditions in proportion to `counts`.

    The balance heuristic of multiple importance sampling (Veach & Guibas 1995): with `counts[c]`
    replies drawn from condition c, weights against the mixture are unbiased and have no outliers.

    Args:
        log_densities: (C, M) log-density of each reply under each condition.
        counts: (C,)
    """
    shares = np.log(np.asarray(counts, dtype=np.float64) / np.sum(counts))
    return np.logaddexp.reduce(log_densities + shares[:, None], axis=0)

"""Token auction: advertisers' LLMs write one reply, token by token (Duetting et al., 2310.10826).

The next token, or mention (one symbol), is drawn from the linear aggregation of what the LLMs of
the n advertisers would write next, all having read the same,

    q = Σ_i α_i·p_i,     α_i = b_i / Σ_k b_k;     where all bids are 0, α_i = 1/n.

**Any bids from one recording.** The log-probability l_it of every symbol t under every advertiser
i is recorded. So the density of a reply under any bids is exact,

    log q_b(y) = Σ_t log Σ_i α_i·exp(l_it),

and replies weigh `w_j(b) ∝ q_b(y_j)/q_gen(y_j)`, self-normalised. Replies that were written under
these very bids (live) weigh the same. Of other bids such replies tell little:
those written while an advertiser bids about 0 hold next to nothing of what its LLM would write, and
no finite weight makes up for that. Recorded replies were written under profiles of all kinds, so
counterfactuals are taken from them.

**Payment: second price by stable sampling**. Let p_−i be the mixture without i
and B its bids' sum. Bidding z, advertiser i moves the distribution from p_−i to
`p_−i + α(z)·(p_i − p_−i)`, α(z) = z/(z + B): mass leaves the symbols with p_i < p_−i for those with
p_i > p_−i, ever more as z rises (monotone aggregation). A stable sampler therefore switches the
symbol drawn at most once as z rises from 0 to b_i, to one that LLM i likes better, and i pays the
bid at which it switched. Switching at a bid in dz has probability TV(p_i, p_−i)·dα(z), so

    E[payment for the symbol] = TV·∫_0^b z dα(z) = TV·κ(b, B),   κ = B·[ln(1 + b/B) − b/(b + B)],

0 for a lone bidder, who has nobody to outbid. As `TV = E_{y~q}[(p_i(y) − p_−i(y))^+ / q(y)]`, the
symbols drawn are enough: reply j is charged `Σ_t κ·(p_i − p_−i)^+ / q` at its symbols, which is,
symbol by symbol, the mean price given that this symbol was drawn; and payments are means of that.

**Units.** For one symbol the price lies between 0 and the bid: a bid is what an advertiser would
give for a symbol wholly in its favour. Here bids are money per click, that is per reply, so charges
are divided by the constant `reply_symbols`: a bid buys a reply of so many symbols. It has to be a
constant: dividing by the reply's own length would break the equation for TV, since later symbols
decide the length. A charge is then at most `b_i·(symbols of the reply)/reply_symbols`. It does not
depend on clicks. The paper proves its incentives for preferences over one next symbol's
distribution, given the text so far; it claims nothing for advertisers who want clicks on whole
replies, and neither does this.

Shapes: requests B, replies M, ads n, symbols T (padded with 0, which is neutral), grid bids G.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.base import Allocation, Mechanism, Outcome
from mechanisms.candidates import expectation
from mechanisms.checks import Parametric, bid_grid, positive
from mechanisms.errors import BadInput
from mechanisms.gibbs import effective_sample_size, normalised, warn_if_low
from mechanisms.pool import Floats, Ints, ReplyPool

LOG_PROBS = "token_log_probs"
"""Name of the pool's extra array (B, M, n, T): log-probability of each symbol, by advertiser."""
BID_PROFILES = "token_bid_profile"
"""Name of its extra array (B, M, n): the bids under which each reply was written together."""
NEVER = -1e4
"""Stands for log 0 in it, since pools hold finite numbers; e^-10,000 is 0 in float64."""
# What no advertiser with a positive share would write has this density, so that replies with fewer
# such symbols go before those with more, should a request have no others.
_TINY = 1e-300
# Array elements a block of counterfactual mixtures may hold: 2 MB of float64.
_BLOCK = 250_000
_WEIGHTS = "weights under these bids"
_MEND = (
    " (see TokenAuction.check_bids): their auctions rest on a single reply; record more replies, "
    "or write them under the bids played"
)


@dataclass(frozen=True)
class TokenAuction(Parametric, Mechanism):
    """Linear aggregation of the advertisers' LLMs, at second price by stable sampling.

    Attributes:
        reply_symbols: symbols of a whole reply, which a bid is for; the default is the mean length
            of recorded replies of three sentences (SmolLM2-135M, default scenario: 39).
    """

    name: ClassVar[str] = "token"
    generation: ClassVar[str] = "token"
    tells_of_other_bids: ClassVar[bool] = False

    reply_symbols: float = 40.0

    def __post_init__(self) -> None:
        positive("reply_symbols", self.reply_symbols)

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        by_request = pool.bids_by_request(bids)
        log_probs = _recorded(pool)
        probabilities = normalised(log_mixture(log_probs, shares(by_request)) - pool.log_gen)
        return Allocation(
            probabilities=probabilities,
            itctr=expectation(probabilities, pool.ctr),
            payments=expectation(probabilities, self.charges(pool, by_request)),
        )

    def charges(self, pool: ReplyPool, bids: ArrayLike) -> Floats:
        """(B, M, n) what each advertiser is charged for each reply."""
        return self._charges(_recorded(pool), pool.bids_by_request(bids))

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) charges for the symbols of the reply shown; clicks do not enter."""
        shown = _recorded(pool)[np.arange(len(chosen)), chosen]
        return self._charges(shown[:, None], bids)[:, 0]

    def _charges(self, log_probs: Floats, bids: Floats) -> Floats:
        if not bids.shape[1]:
            return np.zeros(log_probs.shape[:3])
        own = np.exp(log_probs - log_probs.max(axis=2, keepdims=True))
        mixed = np.maximum(shares(bids)[:, None, None, :] @ own, _TINY)
        excess = np.maximum(own - _without(bids)[:, None] @ own, 0.0)
        price = critical_price(bids, _rivals(bids)) / self.reply_symbols
        return price[:, None, :] * (excess / mixed).sum(axis=3)

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`; warns if these bids leave too little choice, see `check_bids`."""
        outcome = super().run(pool, bids, rng)
        sizes = effective_sample_size(outcome.probabilities)
        warn_if_low(sizes, pool.shape[1], _WEIGHTS, _MEND, pool)
        return outcome

    def check_bids(self, pool: ReplyPool, bids: ArrayLike) -> Floats:
        """(B,) effective sample size of the weights under `bids`; warns if any is below 2.

        Unlike the weights of a Gibbs mechanism these depend on the bids: the further from the bid
        profiles the replies were written under, the fewer replies speak for them.
        """
        sizes = effective_sample_size(self.allocate(pool, bids).probabilities)
        warn_if_low(sizes, pool.shape[1], _WEIGHTS, _MEND)
        return sizes

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`, from mixtures of two: p_i, and p_−i, which stays.

        Warns, once per pool object as `run` does, if a bid to try leaves too little choice.
        """
        by_request = pool.bids_by_request(bids)
        grid = bid_grid(pool, alternatives)
        log_probs = _recorded(pool)
        B, M, n = pool.shape
        G, T = grid.shape[2], log_probs.shape[3]
        itctr, payments = np.empty_like(grid), np.empty_like(grid)
        if not itctr.size:
            return itctr, payments
        block = max(1, _BLOCK // max(1, n * G * M * T))
        for start in range(0, B, block):
            rows = slice(start, min(start + block, B))
            rivals = _rivals(by_request[rows])[:, :, None]
            found = _deviations(
                log_probs[rows],
                _without(by_request[rows]),
                _share_against(grid[rows], rivals, n),
                pool.log_gen[rows],
            )
            price = critical_price(grid[rows], rivals) / self.reply_symbols
            ctr = pool.ctr[rows].transpose(0, 2, 1)[..., None]
            itctr[rows] = (found[0] @ ctr)[..., 0]
            payments[rows] = price * (found[0] * found[1]).sum(axis=3)
            warn_if_low(effective_sample_size(found[0]), M, _WEIGHTS, _MEND, pool)
        return itctr, payments


def shares(bids: Floats) -> Floats:
    """(..., n) shares α of the bids in their sum; equal where all are 0."""
    n = bids.shape[-1]
    top = bids.max(axis=-1, keepdims=True, initial=0.0)
    # By the largest first: their sum might overflow.
    scaled = np.where(top > 0, bids / np.where(top > 0, top, 1.0), 1.0)
    return scaled / scaled.sum(axis=-1, keepdims=True) if n else scaled


def log_mixture(log_probs: Floats, weights: Floats) -> Floats:
    """(B, M) exact log-density of replies under mixtures, `Σ_t log Σ_i α_i·e^l_it`.

    Args:
        log_probs: (B, M, n, T) by symbol and advertiser.
        weights: (B, n) shares α, or (B, M, n) of its own for every reply.
    """
    if not log_probs.shape[2]:
        return np.zeros(log_probs.shape[:2])
    top = log_probs.max(axis=2, keepdims=True)
    weights = weights if weights.ndim == 3 else weights[:, None]
    mixed = (weights[..., None, :] @ np.exp(log_probs - top))[:, :, 0]
    return (np.log(np.maximum(mixed, _TINY)) + top[:, :, 0]).sum(axis=2)


def critical_price(bids: Floats, rivals: Floats) -> Floats:
    """`κ(b, B) = ∫_0^b z dα(z) = B·[ln(1 + b/B) − b/(b + B)]`, α(z) = z/(z + B); 0 at B = 0.

    Args:
        bids: (...) own bids b.
        rivals: (...) sums B of the others' bids, broadcast against `bids`.
    """
    bids, rivals = np.broadcast_arrays(bids, rivals)
    both = (bids > 0) & (rivals > 0)
    small = both & (bids <= rivals)
    ratio = np.divide(bids, rivals, out=np.zeros(bids.shape), where=small)
    safe_bids, safe_rivals = np.where(both, bids, 1.0), np.where(both, rivals, 1.0)
    log = np.where(small, np.log1p(ratio), np.log(safe_bids + safe_rivals) - np.log(safe_rivals))
    # At small b/B the two terms cancel to (b/B)²/2: there by series, to the last digit.
    series = ratio**2 * (0.5 - ratio * (2 / 3 - ratio * (0.75 - ratio * 0.8)))
    exact = log - safe_bids / (safe_bids + safe_rivals)
    return np.where(both, rivals * np.where(small & (ratio < 1e-4), series, exact), 0.0)


def _deviations(
    log_probs: Floats, without: Floats, alpha: Floats, log_gen: Floats
) -> tuple[Floats, Floats]:
    """Weights of replies, and their sums of `(p_i − p_−i)^+ / q`, both (B, n, G, M).

    Args:
        log_probs: (B, M, n, T) by symbol and advertiser.
        without: (B, n, n) shares of the others in p_−i, by row.
        alpha: (B, n, G) shares of i to try.
        log_gen: (B, M) log-density under what generated the replies.
    """
    B, M, n, T = log_probs.shape
    top = log_probs.max(axis=2, keepdims=True)
    own = np.exp(log_probs - top)
    others = without[:, None] @ own
    excess = np.maximum(own - others, 0.0).transpose(0, 2, 1, 3)
    ends = np.stack([others, own], axis=2).transpose(0, 3, 2, 1, 4).reshape(B, n, 2, M * T)
    path = np.stack([1.0 - alpha, alpha], axis=3)
    mixed = np.maximum(path @ ends, _TINY).reshape(B, n, -1, M, T)
    ratio = (excess[:, :, None] / mixed).sum(axis=4)
    log_weights = np.log(mixed, out=mixed).sum(axis=4)
    log_weights += (top[:, :, 0].sum(axis=2) - log_gen)[:, None, None]
    return normalised(log_weights), ratio


def _share_against(bids: Floats, rivals: Floats, n: int) -> Floats:
    """`b/(b + B)`, and 1/n where nobody bids."""
    top = np.maximum(bids, rivals)
    own = np.divide(bids, top, out=np.ones_like(bids), where=top > 0)
    theirs = np.divide(rivals, top, out=np.full_like(bids, n - 1.0), where=top > 0)
    return own / (own + theirs)


def _rivals(bids: Floats) -> Floats:
    """(B, n) sums of the others' bids; added up, so that no bid enters its own price."""
    n = bids.shape[1]
    return bids @ (1.0 - np.eye(n))


def _without(bids: Floats) -> Floats:
    """(B, n, n) shares of the others in the mixture without i, by row; 0 where i is alone."""
    n = bids.shape[1]
    others = ~np.eye(n, dtype=bool)
    left = np.where(others, bids[:, None, :], 0.0)
    top = left.max(axis=2, keepdims=True)
    scaled = np.where(top > 0, left / np.where(top > 0, top, 1.0), others)
    return scaled / np.maximum(scaled.sum(axis=2, keepdims=True), 1.0)


def _recorded(pool: ReplyPool) -> Floats:
    log_probs = pool.extra(
        LOG_PROBS, "the token auction", "record them with replies.generation 'token'"
    )
    B, M, n = pool.shape
    if log_probs.ndim != 4 or log_probs.shape[2] != n:
        raise BadInput(f"{LOG_PROBS} has shape {log_probs.shape}; give ({B}, {M}, {n}, symbols T)")
    return log_probs

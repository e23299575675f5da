"""What an Ad-LLM is taught from a recorded pool: demonstrations, and the ideal rule's replies.

**Pool distillation** (DESIGN 3.3). Over the recorded candidates of a request, LLM-Auction's ideal
rule under bids b is `π*_j(b) ∝ w_j·exp(R_j(b)/β)`, with the whole reward R. Distillation minimises,
under fresh bids in each step, the cross-entropy `−Σ_j π*_j(b)·log π_θ(y_j | x, b)`, whose gradient
is that of `KL(π*(·|b) ‖ π_θ(·|b))`.

The sum runs over groups of replies that show the same ads: a group enters by its exact probability
and one reply drawn from it. So the part that bids decide, who is shown, has no sampling noise.

**What there is to learn.** The prose of these replies was written by the LLM itself; what it does
not know is when to mention an ad, which, and in what format. So tokens count fully from the
beginning of the sentence that mentions an ad to the end of the marker, at the beginning of every
sentence, and at the end of the reply. All others count `prose`: a guard against forgetting how to
write.

A **demonstration** is a reply that shows one ad, whatever the bids: it teaches the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechanisms.checks import positive
from mechanisms.errors import BadInput
from mechanisms.gibbs import normalised
from mechanisms.llm_auction.prompt import shown_bids
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.packing import Pack
from mechanisms.llm_auction.training.policy import Policy
from mechanisms.mentions import parse, render
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.recording import Request

LOWEST, HIGHEST = 1, 100
NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Example:
    """A prompt and replies to it.

    Attributes:
        pack: K replies.
        weights: (K,) how much each counts, summing to 1.
        tokens: (T,) how much each token of the replies counts in its reply, reply after reply.
    """

    pack: Pack
    weights: Floats
    tokens: Floats


def draw_bids(rng: np.random.Generator, n: int) -> Ints:
    """(n,) bids of 1..100, uniform as in the paper."""
    return rng.integers(LOWEST, HIGHEST + 1, size=n)


class PoolTeacher:
    """Draws what to learn from a recorded pool.

    Args:
        policy: its prompts and tokens.
        pool: recorded replies, each showing at most as many ads as the policy's rules allow.
        requests: those of the pool, in its order.
        beta: β of the ideal rule, in the unit of bids 1..100 per nat.
        reward: R.
        prose: how much a token counts that decides nothing.
    """

    def __init__(
        self,
        policy: Policy,
        pool: ReplyPool,
        requests: Sequence[Request],
        beta: float,
        reward: ResponseReward,
        prose: float = 0.1,
    ) -> None:
        self.policy = policy
        self.pool = pool
        self.requests = requests
        positive("beta", beta)
        self.beta = beta
        self.reward = reward
        B, M, _ = pool.shape
        if pool.replies is None or len(requests) != B:
            raise BadInput("distillation needs a pool of an LLM's replies, and all its requests")
        texts = pool.replies["text"].to_list()
        said = [[bare(texts[b * M + j], requests[b]) for j in range(M)] for b in range(B)]
        self.replies = [[policy.reply(text) for text in row] for row in said]
        self.tokens = [
            [
                token_weights(policy, text, tokens, request, prose)
                for text, tokens in zip(row, spelled, strict=True)
            ]
            for row, spelled, request in zip(said, self.replies, requests, strict=True)
        ]
        self.complete = pool.replies["complete"].to_numpy().reshape(B, M)
        # Groups of replies that show the same ads.
        self.groups = [
            np.unique(pool.exposure[b], axis=0, return_inverse=True)[1].ravel() for b in range(B)
        ]

    def demonstration(self, rng: np.random.Generator) -> Example:
        """A reply that shows a random ad, under random bids."""
        b = int(rng.integers(len(self.requests)))
        shown = np.flatnonzero(self.pool.exposure[b].any(axis=1))
        if not len(shown):
            raise BadInput(
                f"no recorded reply to {self.requests[b].query!r} shows an ad; record more replies"
            )
        groups = self.groups[b][shown]
        group = rng.choice(np.unique(groups))
        j = int(rng.choice(shown[groups == group]))
        bids = draw_bids(rng, len(self.requests[b].ads))
        return self._example(b, bids, np.array([j]), np.ones(1), rng)

    def distilled(self, rng: np.random.Generator) -> Example:
        """The ideal rule's replies under fresh bids."""
        b = int(rng.integers(len(self.requests)))
        bids = draw_bids(rng, len(self.requests[b].ads))
        chosen, weights = self.targets(b, bids, rng)
        return self._example(b, bids, chosen, weights, rng)

    def targets(self, b: int, bids: Ints, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """One reply of each group to request `b`, and the groups' probabilities under `bids`.

        Groups below `NEGLIGIBLE` are left out, the others scaled to sum to 1.
        """
        probabilities, groups = self.ideal(b, bids), self.groups[b]
        marginal = np.bincount(groups, weights=probabilities)
        kept = np.flatnonzero(marginal > NEGLIGIBLE)
        chosen = []
        for group in kept:
            inside = np.where(groups == group, probabilities, 0.0)
            chosen.append(int(rng.choice(len(inside), p=inside / inside.sum())))
        return np.array(chosen), marginal[kept] / marginal[kept].sum()

    def ideal(self, b: int, bids: Ints) -> Floats:
        """(M,) the ideal rule's probabilities, of bids as the LLM reads them."""
        shown, pool = shown_bids(np.asarray(bids, dtype=np.float64)), self.pool
        rewards = self.reward(
            shown[None].astype(np.float64),
            pool.ctr[b : b + 1],
            pool.exposure[b : b + 1],
            pool.malformed[b : b + 1],
            self.complete[b : b + 1],
        )[0]
        return normalised(pool.log_weights[b] + rewards / self.beta)

    def _example(
        self, b: int, bids: Ints, chosen: Ints, weights: Floats, rng: np.random.Generator
    ) -> Example:
        pack = Pack(self._prompt(b, bids, rng), [self.replies[b][j] for j in chosen])
        return Example(pack, weights, np.concatenate([self.tokens[b][j] for j in chosen]))

    def _prompt(self, b: int, bids: Ints, rng: np.random.Generator) -> list[int]:
        request = self.requests[b]
        order = rng.permutation(len(bids))
        ads = [request.ads[i] for i in order]
        return self.policy.prompt(request.query, request.user, ads, bids[order])


def bare(text: str, request: Request) -> str:
    """A recorded reply as an Ad-LLM should write it: without the taglines behind its mentions."""
    parsed = parse(text, request.ads)
    for i in parsed.ads:
        ad = request.ads[i]
        text = text.replace(f"{render(ad)} ({ad.tagline})", render(ad))
    return text


def token_weights(
    policy: Policy, text: str, tokens: Sequence[int], request: Request, prose: float
) -> Floats:
    """(T,) how much each token of a reply counts: 1 where something is decided, else `prose`."""
    weights = np.full(len(tokens), prose)
    weights[0] = weights[-1] = 1.0
    spans = parse(text, request.ads).spans
    at = 0
    sentence = True
    for k, token in enumerate(tokens[:-1]):
        piece = policy.tokenizer.decode([token])
        inside = any(_sentence_of(text, start) <= at < end for start, end in spans)
        if inside or sentence:
            weights[k] = 1.0
        at += len(piece)
        sentence = piece.strip()[-1:] in (".", "!", "?")
    return weights


def _sentence_of(text: str, at: int) -> int:
    """Where the sentence begins that holds position `at`."""
    return max(text.rfind(mark, 0, at) for mark in (". ", "! ", "? ")) + 1

"""Writing replies by the LLMs of all advertisers together (`mechanisms.token_auction`).

Advertiser i's LLM is the one LLM under a prompt that names ad i only. A symbol of a reply is a
token, or what happens at a decision (`mechanisms.insertion`): advertiser i inserts its own mention
with probability `guided_rate`, unless it stands already, and else nothing. So the mixture inserts
ad i with probability α_i·guided_rate. A title that the LLMs write in their own words, in places
where a mention may stand (`mechanisms.openings`), is shown as a mention too: its tokens are symbols
like all others, and no reference LLM has to explain them.

Each reply is written under a bid profile of its own, and weighed against the mixture of all M,
`q_gen(y) = (1/M) Σ_m q_{b^m}(y)` (the balance heuristic), so weights stay bounded near any profile.
They still vary a lot where LLMs differ token by token. Seen with SmolLM2-135M, default scenario,
n = 4, M = 24: median effective sample size 6 at temperature 0.3 and 11 at 0.7 for bids of the same
order, 1 to 2 where one advertiser bids alone. Mind `TokenAuction.check_bids`, record many replies,
or go live. `log_ref` is the density under equal bids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mechanisms.insertion import Draft, GuidedInsertion
from mechanisms.llm.base import Engine
from mechanisms.mentions import AdCopy
from mechanisms.policies import NOTHING, PHRASES, InsertionPolicy, Rules
from mechanisms.pool import Floats
from mechanisms.recording.auction import bid_profiles
from mechanisms.recording.conditions import prompt
from mechanisms.recording.design import Design, Recorded, Request
from mechanisms.recording.writing import Drafted, read_reply
from mechanisms.token_auction import BID_PROFILES, LOG_PROBS, NEVER, log_mixture, shares


def write_tokens(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> Recorded:
    """Write M replies to each request, each under the request's bids or a profile of its own.

    Returns:
        The replies; `log_ref` and `log_gen` (B, M); and the extra arrays `token_log_probs`
        (B, M, n, T) and `token_bid_profile` (B, M, n), see `mechanisms.token_auction`.

    Raises:
        BadInput: the engine does not give whole next-token distributions.
    """
    from mechanisms.llm.mixture import generate_mixture  # takes torch along

    B, M, n = len(requests), design.replies, len(requests[0].ads)
    keys = range(B) if keys is None else keys
    profiles = bid_profiles(requests, M, seed, keys)
    alpha = shares(profiles)
    guide = MixtureInsertion(
        engine,
        [request.ads for request in requests],
        alpha,
        design.guided_rate,
        design.rules,
        seed,
        keys,
    )
    # Without ads there is nobody to write on behalf of: the reference LLM writes alone.
    kinds = [f"advertiser:{i}" for i in range(n)] or ["reference"]
    mixed = generate_mixture(
        engine,
        [[prompt(kind, request) for kind in kinds] for request in requests],
        alpha if n else np.ones((B, M, 1)),
        max_new_tokens=guide.max_new_tokens,
        temperature=design.temperature,
        seed=seed,
        guide=guide,
        keys=keys,
    )
    found = [
        [
            _symbols(under[:n, ~sample.forced], guide.drafts[b, k], design)
            for k, (sample, under) in enumerate(row)
        ]
        for b, row in enumerate(mixed)
    ]
    T = max(each.shape[1] for row in found for each in row)
    log_probs = np.zeros((B, M, n, T))
    for b, row in enumerate(found):
        for k, each in enumerate(row):
            log_probs[b, k, :, : each.shape[1]] = each
    under_profiles = [log_mixture(log_probs, alpha[:, m]) for m in range(M)]
    log_gen = np.logaddexp.reduce(under_profiles, axis=0) - np.log(M)
    log_ref = log_mixture(log_probs, np.full((B, n), 1 / max(n, 1)))
    scores = engine.score(
        [prompt("reference", request) for request in requests],
        [[sample.tokens for sample, _ in row] for row in mixed],
        temperature=design.temperature,
    )
    written = [
        [
            read_reply(
                engine,
                Drafted("token", "token", sample, guide, (b, k)),
                request.ads,
                scores[b][k],
                design.rules.decisions,
            )
            for k, (sample, _) in enumerate(mixed[b])
        ]
        for b, request in enumerate(requests)
    ]
    extras = {LOG_PROBS: log_probs, BID_PROFILES: profiles}
    return Recorded(written, log_ref, log_gen, extras)


class MixtureInsertion(GuidedInsertion):
    """A `Guide` that inserts what the mixture of the advertisers would insert.

    Args:
        engine: encodes and decodes.
        candidates: (P) lists of the candidate ads of each prompt.
        alpha: (P, R, n) shares of the advertisers in each reply.
        rate: probability with which each inserts its own mention, at a decision.
        rules: common rules.
        seed: of the insertions.
        keys: (P,) see `GuidedInsertion`.
    """

    def __init__(
        self,
        engine: Engine,
        candidates: Sequence[Sequence[AdCopy]],
        alpha: Floats,
        rate: float,
        rules: Rules,
        seed: int,
        keys: Sequence[int],
    ) -> None:
        self.rate = rate
        none = np.zeros(rules.decisions)
        policies = [
            [InsertionPolicy("token", none, each, own_words=True) for each in row] for row in alpha
        ]
        super().__init__(engine, candidates, policies, rules, seed, keys, inline=True)

    def _decide(
        self, prompt: int, draft: Draft, policy: InsertionPolicy, written: int, free: int
    ) -> Sequence[int] | str:
        # Advertisers whose ad stands insert nothing: that much of the rate is gone.
        left = self._shares_left(policy, draft).sum()
        rates = np.full(self.rules.decisions, self.rate * left)
        return super()._decide(prompt, draft, replace(policy, rates=rates), written, free)


def _symbols(tokens: Floats, draft: Draft, design: Design) -> Floats:
    """(n, T) log-probability of every symbol under each advertiser: tokens, then decisions.

    Args:
        tokens: (n, tokens) of those that the LLMs wrote.
        draft: what the guide noted.
        design: for the rate.
    """
    n = len(tokens)
    to_say = np.ones(n, dtype=bool)
    decided = []
    for event, opening in zip(draft.events, draft.at, strict=True):
        if opening is None and event == NOTHING:
            decided.append(np.where(to_say, np.log1p(-design.guided_rate), 0.0))
        elif opening is None:
            own = np.arange(n) == event
            decided.append(np.where(own, np.log(design.guided_rate / len(PHRASES)), NEVER))
        if event >= 0:
            to_say[event] = False
    return np.concatenate([tokens, np.array(decided).reshape(len(decided), n).T], axis=1)

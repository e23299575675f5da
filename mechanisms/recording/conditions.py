"""Conditions: the prompts and insertion policies under which candidate replies are written.

A condition is a prompt and an `InsertionPolicy`. Its density of a reply is

    Π free tokens under its prompt · Π decisions and openings under its policy

and for a condition in whose own words titles are mentions, the probability of their tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mechanisms.llm_auction.prompt import auction_prompt
from mechanisms.mentions import AdCopy, one_line
from mechanisms.policies import InsertionPolicy, reference_policy
from mechanisms.recording.design import Design, Request

REFERENCE_PROMPT = "Question: {query}\n\nAnswer with practical advice in three short sentences."
CONTEXT_PROMPT = (
    "Question: {query}\n\nAnswer with practical advice in three short sentences, "
    "and recommend one of these products by name where it helps:\n{ads}"
)
ADVERTISER_PROMPT = (
    "Question: {query}\n\nAnswer with practical advice in three short sentences, "
    "and recommend this product by name where it helps:\n{ads}"
)
TEMPLATES = {
    "reference": REFERENCE_PROMPT,
    "context": CONTEXT_PROMPT,
    "advertiser": ADVERTISER_PROMPT,
    "auction": auction_prompt("", "", (), ()),
}
"""By kind; that of `auction` is shown without query, profile and ads."""
OWN_SHARE = 0.9
"""Of the mentions that an LLM prompted on behalf of an advertiser would make, those of its ad."""


class Condition(NamedTuple):
    """`count` replies are written by `policy` under the prompt of this kind."""

    prompt: str
    policy: InsertionPolicy
    count: int


def prompt(kind: str, request: Request) -> str:
    """The user message: of kind `reference`, `context`, or `advertiser:i` (names ad i only)."""
    if kind == "reference":
        return REFERENCE_PROMPT.format(query=request.query)
    if kind == "context":
        return CONTEXT_PROMPT.format(query=request.query, ads="\n".join(map(_line, request.ads)))
    ad = request.ads[int(kind.removeprefix("advertiser:"))]
    return ADVERTISER_PROMPT.format(query=request.query, ads=_line(ad))


def templates(design: Design, ads: int) -> dict[str, str]:
    """Those of `TEMPLATES` that replies with `ads` candidate ads are written or scored under."""
    advertiser = ["advertiser"] if ads else []
    if design.generation == "auction":
        kinds = ["auction"]
    elif design.generation == "token":
        kinds = advertiser
    else:
        kinds = [condition.prompt for condition in conditions(design, ads)]
        kinds += advertiser if design.log_ratios else []
    known = TEMPLATES | {"auction": design.writing.style.message("", "", (), ())}
    return {kind: known[kind] for kind in ("reference", *kinds)}


def conditions(design: Design, ads: int) -> list[Condition]:
    """The conditions of a recording, their counts summing to M."""
    M = design.replies
    if design.generation == "reference":
        return [Condition("reference", reference(design, ads), M)]
    named = {"guided": 0, "mixture": M // 2, "context": M}[design.generation]
    found = _guided(design, ads, M - named) if named < M else []
    if named:
        rates, shares = np.full(design.rules.decisions, design.guided_rate), np.ones(ads)
        own_words = design.inline_rate > 0
        policy = InsertionPolicy("context", rates, shares, own_words=own_words)
        found.append(Condition("context", policy, named))
    return found


def reference(design: Design, ads: int) -> InsertionPolicy:
    """The policy of the reference, which importance weights lead back to."""
    return reference_policy(ads, design.rules, design.mention_rate, design.inline_rate)


def on_behalf_of(i: int, design: Design, ads: int) -> InsertionPolicy:
    """What an LLM prompted on behalf of advertiser i inserts: mostly ad i, sometimes another.

    It may insert any ad, so that its log-ratio to the reference is finite for every reply.
    """
    others = (1 - OWN_SHARE) / max(ads - 1, 1)
    shares = np.where(np.arange(ads) == i, OWN_SHARE, others)
    rates = np.full(design.rules.decisions, design.guided_rate)
    return InsertionPolicy(f"advertiser:{i}", rates, shares, inline=design.inline_rate)


def _guided(design: Design, ads: int, count: int) -> list[Condition]:
    """Guided insertion by a mixture of policies, all under the reference prompt.

    Half of the replies show a single ad in turn, a sixth none, the rest any. Of the replies of
    `single:i` the first inserts at its first decision, so that every ad has a reply that shows
    it alone; the others do so with probability one half and else at their second decision,
    which varies the place.
    """
    K = design.rules.decisions
    single = count // (2 * ads) if ads else 0
    none = min(max(1, count // 6), count - single * ads) if ads else count
    policies = [(InsertionPolicy("reference", np.zeros(K), np.zeros(ads)), none)]
    if guided := count - none - single * ads:
        rates = np.full(K, design.guided_rate)
        any_ad = InsertionPolicy("guided", rates, np.ones(ads), inline=design.inline_rate)
        policies.append((any_ad, guided))
    at_once, sooner_or_later = np.ones(K), np.where(np.arange(K) == 0, 0.5, 1.0)
    for i, name in enumerate(f"single:{i}" for i in range(ads if single else 0)):
        only = (np.arange(ads) == i).astype(np.float64)
        policies.append((InsertionPolicy(name, at_once, only), 1))
        if single > 1:
            policies.append((InsertionPolicy(name, sooner_or_later, only), single - 1))
    return [Condition("reference", policy, number) for policy, number in policies]


def _line(ad: AdCopy) -> str:
    return f"- {one_line(ad.title)}: {one_line(ad.text)}"

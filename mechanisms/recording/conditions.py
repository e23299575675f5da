"""Conditions: the prompts and insertion policies under which candidate replies are written.

A condition is a prompt and an `InsertionPolicy`. Its density of a reply is

    Π free tokens under its prompt · Π decisions and openings under its policy

and for a condition in whose own words titles are mentions, the probability of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.llm_auction.prompt import auction_prompt
from mechanisms.mentions import AdCopy, one_line
from mechanisms.policies import InsertionPolicy, reference_policy
from mechanisms.pool import Ints
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
STRENGTH_PROMPT = (
    "Question: {query}\n\nAnswer with practical advice in three short sentences.\n{ads}"
)
STRENGTHS = (
    "You may mention this product by name: {ad}",
    "Recommend this product by name: {ad}",
    "Above all, recommend this product by name: {ad}",
)
"""What a prompt says of an ad of strength 1, 2, ... (`mechanisms.iamfm.configuration`)."""
TEMPLATES = {
    "reference": REFERENCE_PROMPT,
    "context": CONTEXT_PROMPT,
    "advertiser": ADVERTISER_PROMPT,
    "strength": STRENGTH_PROMPT,
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
    """The user message, of a kind.

    Args:
        kind: `reference`; `context`; `advertiser:i`, which names ad i only; or `strength:0,2,...`,
            which names each ad as strongly as it is sponsored (`strength_kind`).
        request: its query and ads.

    Raises:
        BadInput: a strength that there are no words for.
    """
    if kind == "reference":
        return REFERENCE_PROMPT.format(query=request.query)
    if kind == "context":
        return CONTEXT_PROMPT.format(query=request.query, ads="\n".join(map(_line, request.ads)))
    if kind.startswith("strength:"):
        found = kind.removeprefix("strength:").split(",")
        return _strength_prompt([int(each) for each in found if each], request)
    ad = request.ads[int(kind.removeprefix("advertiser:"))]
    return ADVERTISER_PROMPT.format(query=request.query, ads=_line(ad))


def strength_kind(strengths: Sequence[int] | Ints) -> str:
    """The kind of prompt that names each candidate ad by its strength (n,)."""
    return "strength:" + ",".join(str(int(each)) for each in strengths)


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


def _strength_prompt(strengths: list[int], request: Request) -> str:
    """The reference prompt, and a line for each ad of strength 1 or more; the strongest last."""
    if max(strengths, default=0) > len(STRENGTHS):
        raise BadInput(
            f"a prompt has words for strengths up to {len(STRENGTHS)}, not for {max(strengths)}; "
            "give fewer steering odds, or steer by guided insertion"
        )
    named = sorted((s, i) for i, s in enumerate(strengths) if s)
    if not named:
        return prompt("reference", request)
    ads = [STRENGTHS[s - 1].format(ad=_words(request.ads[i])) for s, i in named]
    return STRENGTH_PROMPT.format(query=request.query, ads="\n".join(ads))


def _line(ad: AdCopy) -> str:
    return f"- {_words(ad)}"


def _words(ad: AdCopy) -> str:
    return f"{one_line(ad.title)}: {one_line(ad.text)}"

"""Who judges replies: from a scenario's `users` to what `mechanisms.recording` calls.

Behavioural users click by a model; users of content are moved by what a reply says; or an LLM plays
them. What judges by comparison compares with the scenario's own recording, whichever replies it is
asked about: else users would change with the mechanism, and from round to round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.content import ContentUsers, counterfactuals_of
from agents.judge import JudgeSettings, JudgingUsers
from agents.users import BehaviouralUsers, Norms
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.pool import ReplyPool
from mechanisms.recording import Users


def audience(
    scenario: Scenario,
    users: BehaviouralUsers,
    shared: ReplyPool | None = None,
    norms: Norms | None = None,
) -> BehaviouralUsers:
    """The scenario's users, as far as they can be had without an LLM (see `played`).

    Args:
        scenario: says who they are.
        users: behavioural ones, who ask.
        shared: the scenario's own recording, which they compare with; None while it is made.
        norms: by which they judge what is fluent; default those of `shared`.
    """
    if norms is None and shared is not None:
        norms = norms_of(shared)
    if scenario.users.kind == "content":
        # without any, those of a request's own replies, if there are enough
        plain = counterfactuals_of(shared) if shared is not None else None
        return ContentUsers(users.encoder, norms=norms, counterfactuals=plain)
    return replace(users, norms=norms)


def played(scenario: Scenario, users: BehaviouralUsers, engine: Engine) -> Users:
    """The users, or the LLM behind `engine` in their place."""
    if scenario.users.kind == "user-llm":
        return JudgingUsers(engine, _settings(scenario))
    return users


def audience_key(scenario: Scenario, users: BehaviouralUsers) -> dict[str, Any]:
    """What judgements depend on beside what a pool's key always holds; {} for behavioural users."""
    if scenario.users.kind == "user-llm":
        return {"audience": _settings(scenario).identity}
    return {"audience": users.identity} if isinstance(users, ContentUsers) else {}


def norms_of(pool: ReplyPool) -> Norms | None:
    """The norms by which the replies of a recording were judged; None if its users have none.

    Raises:
        BadInput: no LLM wrote them, or no user judged them.
    """
    said = pool.manifest.get("users", {})
    if "norms" in said:
        return Norms(**said["norms"])
    if said.get("kind") == "user-llm":
        return None
    raise BadInput("these replies were not recorded from an LLM; set replies.source to recorded")


def _settings(scenario: Scenario) -> JudgeSettings:
    return JudgeSettings(mode=scenario.users.mode)

"""Mechanisms: who gets into the reply and what they pay. They know nothing of agents or markets."""

from mechanisms.base import Allocation, Mechanism, Outcome
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import MECHANISMS, make_mechanism

__all__ = [
    "MECHANISMS",
    "Allocation",
    "BadInput",
    "Mechanism",
    "Outcome",
    "ReplyPool",
    "make_mechanism",
]

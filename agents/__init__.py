"""Who takes part: advertisers and how they learn, and the platform that serves them."""

from agents.advertiser import Account, Advertiser, UtilityMaximizer, ValueMaximizer
from agents.learners import make_learner
from agents.platform import Platform

__all__ = [
    "Account",
    "Advertiser",
    "Platform",
    "UtilityMaximizer",
    "ValueMaximizer",
    "make_learner",
]

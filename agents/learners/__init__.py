"""Learning bidders: one family a file, one interface (`base.Learner`), by name in `registry`."""

from agents.learners.base import Feedback, Learner, Population
from agents.learners.registry import LEARNERS, check_learner, make_learner

__all__ = ["LEARNERS", "Feedback", "Learner", "Population", "check_learner", "make_learner"]

"""Bayesian equilibria: private values redrawn each round, and the equilibria that are known."""

from experiments.bayesian.prior import Uniform
from experiments.bayesian.solve import BayesianReport, solve_bayesian

__all__ = ["BayesianReport", "Uniform", "solve_bayesian"]

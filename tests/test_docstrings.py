"""Examples in docstrings give what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "agents.learners.registry",
    "experiments.audit.report",
    "experiments.cli.options",
    "experiments.equilibrium",
    "market.model",
    "market.scenario",
    "mechanisms.errors",
    "mechanisms.iamfm.exact",
    "mechanisms.payments",
    "mechanisms.pool",
    "mechanisms.registry",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed

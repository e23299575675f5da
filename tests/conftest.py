"""Fixtures for all tests."""

import os

# Before torch is imported: see `experiments/cli.py`.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.tiny_llm import engine, tiny_llm  # noqa: F401

"""Fixtures for all tests."""

import os

# Before torch is imported: see `experiments/cli/__init__.py`.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.tiny_llm import engine, tiny_llm  # noqa: F401

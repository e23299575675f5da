"""Fixtures for all tests."""

from tests.tiny_llm import engine, tiny_llm  # noqa: F401

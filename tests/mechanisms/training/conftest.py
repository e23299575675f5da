"""A policy on the tiny LLM (random weights), and requests for it."""

import numpy as np
import pytest

from agents.users import BehaviouralUsers
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.llm_auction.training.policy import LoRA, Policy
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request, record
from tests.tiny_llm import ADS, HashEncoder

QUERIES = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?", "A soft bed?")
RULES = Rules(sentences=2, mentions=1, max_tokens=24, loop=10**6)


@pytest.fixture(scope="session")
def requests():
    return [
        Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ADS, range(3))
        for b, query in enumerate(QUERIES)
    ]


@pytest.fixture(scope="session")
def users():
    return BehaviouralUsers(HashEncoder())


@pytest.fixture(scope="session")
def pool(engine, requests, users):
    design = Design(8, guided_rate=0.7, mention_rate=0.4, temperature=0.8, rules=RULES)
    return record(requests, engine, users, design)


@pytest.fixture
def spec(tiny_llm):
    return AdLLM(model=tiny_llm, style=PromptStyle("compact", "tally"), rules=RULES)


@pytest.fixture
def policy(spec):
    return Policy(spec, LoRA(rank=2, alpha=4.0), device="cpu")


def stir(policy, size=0.3, seed=0):
    """Move all trained weights by random amounts; LoRA begins where it changes nothing."""
    rng = np.random.default_rng(seed)
    import torch

    for value in policy.trained.values():
        value.data += torch.tensor(rng.normal(size=tuple(value.shape)) * size, dtype=value.dtype)

"""Several prompts writing together, against transformers' own forward pass of each, in fp32."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechanisms.errors import BadInput
from mechanisms.llm.base import END
from mechanisms.llm.mixture import generate_mixture, mix
from mechanisms.llm.transformers_engine import TransformersEngine

PROMPTS = (
    ("How do I sleep better? Try Tea Pot.", "How do I sleep better?", "Tea"),
    ("I read a book before I sleep, and drink warm tea.", "Sleep", "A soft bed helps. " * 5),
    ("Running shoes should fit well. " * 3, "Do they feel right?", ""),
)
DRAW = {"max_new_tokens": 24, "temperature": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def plain(tiny_llm):
    return AutoModelForCausalLM.from_pretrained(tiny_llm, attn_implementation="eager").eval()


@torch.inference_mode()
def next_token(model, tokens, temperature):
    """(V,) next-token distribution by one whole forward pass of transformers."""
    logits = model(torch.tensor([tokens])).logits[0, -1].double()
    return torch.softmax(logits / temperature, dim=0).numpy()


@torch.inference_mode()
def forward_log_probs(model, prompt, reply, temperature):
    """(T,) log-probabilities of `reply` by one whole forward pass of transformers."""
    ids = torch.tensor([[*prompt, *reply]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    wanted = torch.tensor(list(reply), dtype=torch.long)[:, None]
    return torch.log_softmax(logits, dim=1).gather(1, wanted)[:, 0].numpy()


def shares_of(replies, seed=0, prompts=3):
    return np.random.default_rng(seed).dirichlet(np.ones(prompts), (len(PROMPTS), replies))


def same(left, right, tolerance=1e-4):
    for rows, others in zip(left, right, strict=True):
        for (one, under), (other, others_under) in zip(rows, others, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.forced, other.forced)
            np.testing.assert_allclose(under, others_under, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_mix_is_the_weighted_average_of_the_models_own_distributions(engine, plain, temperature):
    """One prompt: its LLM. Equal shares: the average. Any shares: the weighted average."""
    tokens = [engine.chat_tokens(prompt) for prompt in PROMPTS[0]]
    exact = np.stack([next_token(plain, each, temperature) for each in tokens])
    with torch.inference_mode():
        logits = engine.network.lm_head(engine.prefill(tokens)[2])[None, :, None] / temperature
        for shares in (*np.eye(3), np.full(3, 1 / 3), np.array([0.7, 0.2, 0.1])):
            given = torch.tensor(shares, dtype=torch.float32)[None, None]
            mixed, normaliser = mix(logits, given)
            np.testing.assert_allclose(mixed[0, 0].exp(), shares @ exact, atol=1e-6)
            each = (logits - normaliser)[0, :, 0].exp()
            np.testing.assert_allclose(each, exact, atol=1e-6)
        alone, _ = mix(logits[:, :1], torch.ones(1, 1, 1))
        np.testing.assert_allclose(alone[0, 0].exp(), exact[0], atol=1e-6)


def test_recorded_log_probs_are_those_of_each_llm(engine, plain):
    shares = shares_of(6)
    found = generate_mixture(engine, PROMPTS, shares, **DRAW)
    scored = [
        engine.score(
            [PROMPTS[p][i] for p in range(3)],
            [[mixed.sample.tokens for mixed in row] for row in found],
            temperature=0.8,
        )
        for i in range(3)
    ]
    for p, row in enumerate(found):
        for k, (sample, under) in enumerate(row):
            assert under.shape == (3, len(sample.tokens))
            for i in range(3):
                prompt = engine.chat_tokens(PROMPTS[p][i])
                exact = forward_log_probs(plain, prompt, sample.tokens, 0.8)
                np.testing.assert_allclose(under[i], exact, atol=1e-4)
                np.testing.assert_allclose(under[i], scored[i][p][k], atol=1e-4)
            mixture = np.log(shares[p, k] @ np.exp(under))
            np.testing.assert_allclose(sample.log_probs, mixture, atol=1e-5)


def test_all_weight_on_one_prompt_is_the_engine_itself(engine):
    for i in range(3):
        alone = engine.generate([each[i] for each in PROMPTS], 5, **DRAW)
        shares = np.broadcast_to(np.eye(3)[i], (3, 5, 3))
        for found in (
            generate_mixture(engine, PROMPTS, shares, **DRAW),
            generate_mixture(engine, [[each[i]] for each in PROMPTS], np.ones((3, 5, 1)), **DRAW),
        ):
            for row, others in zip(found, alone, strict=True):
                for (sample, _), other in zip(row, others, strict=True):
                    np.testing.assert_array_equal(sample.tokens, other.tokens)
                    np.testing.assert_allclose(sample.log_probs, other.log_probs, atol=1e-4)
                    assert sample.ended == other.ended


def test_order_of_prompts_does_not_matter(engine):
    shares = shares_of(4)
    order = [2, 0, 1]
    found = generate_mixture(engine, PROMPTS, shares, **DRAW)
    moved = [[each[i] for i in order] for each in PROMPTS]
    other = generate_mixture(engine, moved, shares[:, :, order], **DRAW)
    same(other, [[(sample, under[order]) for sample, under in row] for row in found])


def test_a_reply_does_not_depend_on_its_batch(tiny_llm, engine):
    draw = {**DRAW, "max_new_tokens": 64, "temperature": 1.0}
    shares = shares_of(20)
    together = generate_mixture(engine, PROMPTS, shares, **draw)
    lengths = {len(sample.tokens) for row in together for sample, _ in row}
    assert len(lengths) > 10  # rows leave the batch one by one
    small = TransformersEngine(tiny_llm, dtype="fp32", device="cpu", batch_rows=1)
    same(generate_mixture(small, PROMPTS, shares, **draw), together)
    some = [2, 0]
    part = generate_mixture(engine, [PROMPTS[p] for p in some], shares[some, :2], keys=some, **draw)
    same(part, [together[p][:2] for p in some])
    same(generate_mixture(engine, PROMPTS, shares, **draw), together, tolerance=0)
    other = generate_mixture(engine, PROMPTS, shares, **{**draw, "seed": 4})
    assert all(
        len(one.sample.tokens) != len(two.sample.tokens)
        or (one.sample.tokens != two.sample.tokens).any()
        for one, two in zip(other[0], together[0], strict=True)
    )


class Insists:
    """Writes the same words behind the fourth token, and ends every reply at its twelfth."""

    def __init__(self, words):
        self.words = words

    def step(self, prompt, sample, tokens):
        if len(tokens) == 4:
            return self.words
        return END if len(tokens) >= 12 else ()


def test_all_llms_read_what_a_guide_writes(engine, plain):
    words = engine.encode("Try Tea Pot,")
    found = generate_mixture(engine, PROMPTS, shares_of(3), guide=Insists(words), **DRAW)
    for p, row in enumerate(found):
        for sample, under in row:
            if len(sample.tokens) > 4:
                assert sample.tokens[4 : 4 + len(words)].tolist() == words
                assert sample.forced.sum() == len(words)
            for i in range(3):
                prompt = engine.chat_tokens(PROMPTS[p][i])
                exact = forward_log_probs(plain, prompt, sample.tokens, 0.8)
                np.testing.assert_allclose(under[i], exact, atol=1e-4)


def test_first_tokens_follow_the_mixture(engine, plain):
    draws = 4000
    shares = np.array([0.6, 0.3, 0.1])
    given = np.broadcast_to(shares, (1, draws, 3))
    found = generate_mixture(engine, PROMPTS[:1], given, max_new_tokens=1, temperature=0.8, seed=5)[
        0
    ]
    tokens = [engine.chat_tokens(prompt) for prompt in PROMPTS[0]]
    p = shares @ np.stack([next_token(plain, each, 0.8) for each in tokens])
    counts = np.bincount([sample.tokens[0] for sample, _ in found], minlength=len(p))
    big = draws * p >= 5
    seen, expected = np.append(counts[big], counts[~big].sum()), draws * np.append(p[big], 0)
    expected[-1] = draws - expected.sum()
    statistic = ((seen - expected) ** 2 / expected).sum()
    df = big.sum()
    assert abs(statistic - df) < 4 * np.sqrt(2 * df)


def test_refuses(engine):
    class Other:
        model = "served"

    with pytest.raises(BadInput, match="engine served does not give whole next-token") as refused:
        generate_mixture(Other(), PROMPTS, shares_of(2), **DRAW)
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=r"give 3 requests 2 prompts each"):
        generate_mixture(engine, PROMPTS, shares_of(2, prompts=2), **DRAW)
    with pytest.raises(BadInput, match="temperature > 0"):
        generate_mixture(engine, PROMPTS, shares_of(2), **{**DRAW, "temperature": 0.0})

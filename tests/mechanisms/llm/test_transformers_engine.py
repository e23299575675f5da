"""The embedded engine against transformers' own forward pass, on a tiny LLM in fp32."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechanisms.errors import BadInput
from mechanisms.llm.base import END
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.llm.transformers_engine import TransformersEngine
from tests.tiny_llm import needs_model

PROMPTS = (
    "How do I sleep better?",
    "Tea",
    "Running shoes should fit well. Walk around the shop in them. Do they feel right? " * 3,
    "I read a book before I sleep, and drink warm tea.",
    "",
)
DRAW = {"max_new_tokens": 24, "temperature": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def plain(tiny_llm):
    return AutoModelForCausalLM.from_pretrained(tiny_llm, attn_implementation="eager").eval()


@torch.inference_mode()
def forward_log_probs(model, prompt_tokens, reply, temperature):
    """Token log-probabilities by one whole forward pass of transformers, without a cache."""
    ids = torch.tensor([prompt_tokens + list(reply)])
    logits = model(ids).logits[0, len(prompt_tokens) - 1 : -1].double() / temperature
    wanted = torch.tensor(list(reply), dtype=torch.long)[:, None]
    return torch.log_softmax(logits, dim=1).gather(1, wanted)[:, 0].numpy()


def same(left, right, tolerance=1e-4):
    """Equal tokens, and log-probabilities within `tolerance`."""
    assert len(left) == len(right)
    for rows, others in zip(left, right, strict=True):
        assert len(rows) == len(others)
        for one, other in zip(rows, others, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.forced, other.forced)
            assert one.ended == other.ended
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=tolerance)


def tokens_of(samples):
    return [[sample.tokens for sample in row] for row in samples]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_score_is_the_models_log_softmax(engine, plain, temperature):
    rng = np.random.default_rng(0)
    lengths = [[1, 7, 30], [12, 2, 5], [40, 1, 3], [9, 9, 9], [4, 25, 17]]
    replies = [[rng.integers(0, 420, size=length) for length in row] for row in lengths]
    scored = engine.score(PROMPTS, replies, temperature=temperature)
    for prompt, row, scores in zip(PROMPTS, replies, scored, strict=True):
        for reply, got in zip(row, scores, strict=True):
            expected = forward_log_probs(plain, engine.chat_tokens(prompt), reply, temperature)
            np.testing.assert_allclose(got, expected, atol=1e-4)


def test_score_of_empty_replies(engine, plain):
    reply = engine.encode("A soft bed.")
    scored = engine.score(PROMPTS[:2], [[[], reply], [reply, []]], temperature=1.0)
    assert [len(scores) for row in scored for scores in row] == [0, len(reply), len(reply), 0]
    expected = forward_log_probs(plain, engine.chat_tokens(PROMPTS[0]), reply, 1.0)
    np.testing.assert_allclose(scored[0][1], expected, atol=1e-4)
    assert engine.score(PROMPTS[:1], [[[], []]], temperature=1.0)[0][1].shape == (0,)
    assert engine.score(PROMPTS[:1], [[]], temperature=1.0) == [[]]
    assert engine.score([], [], temperature=1.0) == []
    with pytest.raises(BadInput, match="2 prompts but 1"):
        engine.score(PROMPTS[:2], [[reply]], temperature=1.0)


def test_scores_of_batches_agree(tiny_llm, engine):
    rng = np.random.default_rng(1)
    replies = [[rng.integers(0, 420, size=6 + k) for k in range(3)] for _ in PROMPTS]
    alone = TransformersEngine(tiny_llm, dtype="fp32", device="cpu", batch_rows=1)
    together = engine.score(PROMPTS, replies, temperature=0.7)
    for left, right in zip(alone.score(PROMPTS, replies, temperature=0.7), together, strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_generated_log_probs_are_scores(engine):
    samples = engine.generate(PROMPTS, 6, **DRAW)
    scored = engine.score(PROMPTS, tokens_of(samples), temperature=DRAW["temperature"])
    for row, scores in zip(samples, scored, strict=True):
        for sample, score in zip(row, scores, strict=True):
            np.testing.assert_allclose(sample.log_probs, score, atol=1e-4)


def test_a_reply_does_not_depend_on_its_batch(tiny_llm, engine):
    together = engine.generate(PROMPTS, 5, **DRAW)
    for rows in (1, 7, 10):
        small = TransformersEngine(tiny_llm, dtype="fp32", device="cpu", batch_rows=rows)
        same(small.generate(PROMPTS, 5, **DRAW), together)
    # a subset of the prompts, in another order, and fewer replies each
    some = [3, 0]
    part = engine.generate([PROMPTS[p] for p in some], 2, keys=some, **DRAW)
    same(part, [together[p][:2] for p in some])


def test_seeds_and_keys(engine):
    first = engine.generate(PROMPTS[:2], 4, **DRAW)
    same(engine.generate(PROMPTS[:2], 4, **DRAW), first, tolerance=0)
    other = engine.generate(PROMPTS[:2], 4, **{**DRAW, "seed": 4})
    moved = engine.generate(PROMPTS[:2], 4, keys=[5, 6], **DRAW)
    texts = [
        {tuple(sample.tokens) for row in run for sample in row} for run in (first, other, moved)
    ]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]


def test_rows_that_end_at_different_times(tiny_llm, engine, plain):
    """Many rows leave the batch one by one; those that stay are unharmed."""
    draw = {"max_new_tokens": 64, "temperature": 1.0, "seed": 11}
    samples = engine.generate(PROMPTS, 30, **draw)
    lengths = {len(sample.tokens) for row in samples for sample in row}
    assert len(lengths) > 25
    for prompt, row in zip(PROMPTS, samples, strict=True):
        for sample in row:
            assert sample.ended == (sample.tokens[-1] == engine.end_token)
            assert sample.ended or len(sample.tokens) == 64
            assert engine.end_token not in sample.tokens[:-1]
            assert not sample.forced.any()
        longest = max(row, key=lambda sample: len(sample.tokens))
        expected = forward_log_probs(plain, engine.chat_tokens(prompt), longest.tokens, 1.0)
        np.testing.assert_allclose(longest.log_probs, expected, atol=1e-4)
    small = TransformersEngine(tiny_llm, dtype="fp32", device="cpu", batch_rows=30)
    same(small.generate(PROMPTS[:1], 30, **draw), samples[:1])


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_first_tokens_follow_the_softmax(engine, plain, temperature):
    draws = 4000
    samples = engine.generate(
        PROMPTS[:1], draws, max_new_tokens=1, temperature=temperature, seed=5
    )[0]
    with torch.inference_mode():
        logits = plain(torch.tensor([engine.chat_tokens(PROMPTS[0])])).logits[0, -1].double()
    p = torch.softmax(logits / temperature, dim=0).numpy()
    counts = np.bincount([sample.tokens[0] for sample in samples], minlength=len(p))
    # Pearson's statistic over the tokens expected at least five times, the rest lumped together.
    big = draws * p >= 5
    observed = np.append(counts[big], counts[~big].sum())
    expected = draws * np.append(p[big], p[~big].sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(observed) - 1
    assert freedom > 20
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


class Script:
    """A guide that writes `insert` after the second free token, and ends after the sixth."""

    def __init__(self, insert):
        self.insert = list(insert)
        self.seen = []

    def step(self, prompt, sample, tokens):
        self.seen.append((prompt, sample, tuple(tokens)))
        free = sum(1 for seen in self.seen if seen[:2] == (prompt, sample))
        return self.insert if free == 2 else END if free == 6 else ()


def test_a_guide_writes_and_ends(engine, plain):
    insert = engine.encode(" One good option is Tea Pot,")
    guide = Script(insert)
    samples = engine.generate(PROMPTS, 8, guide=guide, **{**DRAW, "max_new_tokens": 40})
    complete = 0
    for prompt, row in zip(PROMPTS, samples, strict=True):
        for sample in row:
            assert not sample.forced[:2].any()
            if len(sample.tokens) < 3:
                continue
            stop = 2 + len(insert)
            assert sample.tokens[2:stop].tolist() == insert
            assert sample.forced[2:stop].all()
            assert not sample.forced[stop:].any()
            assert sample.ended or len(sample.tokens) == 6 + len(insert)
            complete += not sample.ended
        expected = forward_log_probs(plain, engine.chat_tokens(prompt), row[0].tokens, 0.8)
        np.testing.assert_allclose(row[0].log_probs, expected, atol=1e-4)
    assert complete
    # Asked once a free token, never in the middle of an insertion, with all that is written.
    for p, k, tokens in guide.seen:
        np.testing.assert_array_equal(samples[p][k].tokens[: len(tokens)], tokens)
        assert len(tokens) <= 2 or len(tokens) > 2 + len(insert)
        assert tokens[-1] != engine.end_token


def test_what_is_forced_leaves_the_other_rows_alone(engine):
    class Only(Script):
        def step(self, prompt, sample, tokens):
            return self.insert if (prompt, sample, len(tokens)) == (0, 1, 3) else ()

    free = engine.generate(PROMPTS[:2], 4, **DRAW)
    forced = engine.generate(PROMPTS[:2], 4, guide=Only(engine.encode(" Oak Bed Frame")), **DRAW)
    same([forced[0][:1] + forced[0][2:], forced[1]], [free[0][:1] + free[0][2:], free[1]])
    np.testing.assert_array_equal(forced[0][1].tokens[:3], free[0][1].tokens[:3])
    assert forced[0][1].forced.any()


def test_prompts_that_are_done_leave(engine):
    """Whole prompts leave the batch, short ones first and long ones first; the others go on."""

    class Stop:
        def __init__(self, last):
            self.last = last

        def step(self, prompt, sample, tokens):
            return END if len(tokens) == self.last[prompt] + sample else ()

    free = engine.generate(PROMPTS, 4, **DRAW)
    for last in ([2, 20, 5, 14, 9], [9, 2, 20, 5, 14], [14, 9, 2, 20, 5], [20, 20, 2, 2, 2]):
        stopped = engine.generate(PROMPTS, 4, guide=Stop(last), **DRAW)
        for p, row in enumerate(stopped):
            for k, sample in enumerate(row):
                whole = free[p][k]
                assert len(sample.tokens) == min(last[p] + k, len(whole.tokens))
                np.testing.assert_array_equal(sample.tokens, whole.tokens[: len(sample.tokens)])
                expected = whole.log_probs[: len(sample.tokens)]
                np.testing.assert_allclose(sample.log_probs, expected, atol=1e-4)


def test_a_forced_end_token_does_not_end(engine):
    class Only:
        def step(self, prompt, sample, tokens):
            return [engine.end_token] if len(tokens) == 1 else ()

    for sample in engine.generate(PROMPTS[:1], 6, guide=Only(), **DRAW)[0]:
        if len(sample.tokens) > 1:
            assert sample.forced[1]
            assert len(sample.tokens) > 2


@pytest.mark.parametrize("most", [1, 2, 9])
def test_max_new_tokens(engine, most):
    class Long:
        def step(self, prompt, sample, tokens):
            return [7] * 50

    draw = {**DRAW, "max_new_tokens": most}
    for guide in (None, Long()):
        for row in engine.generate(PROMPTS, 3, guide=guide, **draw):
            assert all(1 <= len(sample.tokens) <= most for sample in row)
            assert guide is None or all(len(s.tokens) == most for s in row if not s.ended)


def test_bad_arguments(engine, tiny_llm):
    for wrong in ({"temperature": 0}, {"max_new_tokens": 0}):
        with pytest.raises(BadInput, match="generate needs"):
            engine.generate(PROMPTS, 1, **{**DRAW, **wrong})
    with pytest.raises(BadInput, match="generate needs"):
        engine.generate(PROMPTS, 0, **DRAW)
    with pytest.raises(BadInput, match="fp16"):
        TransformersEngine(tiny_llm, dtype="fp16")
    with pytest.raises(ValueError, match="guide"):
        engine.generate(PROMPTS, 1, guide=Wrong(), **DRAW)


class Wrong:
    def step(self, prompt, sample, tokens):
        return "stop"


def special_names(engine):
    return [t.content for t in engine.tokenizer.added_tokens_decoder.values() if t.special]


def check_that_text_holds_no_control_tokens(engine):
    names = special_names(engine)
    control = set(engine.tokenizer.convert_tokens_to_ids(names))
    template = [t for t in engine.chat_tokens("") if t in control]
    nested = f"{names[0][:4]}{names[-1]}{names[0][4:]}"  # leaves a name when the inner one goes
    for hostile in (*names, "".join(names) * 3, nested, nested * 2):
        text = f"Tea {hostile}Pot, {hostile}or{hostile}"
        assert control.isdisjoint(engine.encode(text))
        assert engine.encode(text) == engine.encode("Tea Pot, or")
        asked = engine.chat_tokens(text)
        assert [t for t in asked if t in control] == template
        assert asked == engine.chat_tokens("Tea Pot, or")
    # but what only looks alike stays
    assert engine.decode(engine.encode("<|im_over|> a < b | c >")) == "<|im_over|> a < b | c >"


def test_text_holds_no_control_tokens(engine):
    assert {"<|im_start|>", "<|im_end|>"} <= set(special_names(engine))
    check_that_text_holds_no_control_tokens(engine)


def test_control_tokens_that_are_not_flagged_as_special(tiny_llm, tmp_path):
    """As <think> and <tool_call> in Qwen3; but runs of white space are ordinary text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    control = ["<think>", "</think>", "<tool_call>", "<|fim_middle|>"]
    ordinary = ["    ", "<- ", "tea", "< b >"]
    tokenizer.add_tokens([AddedToken(text, special=False) for text in [*control, *ordinary]])
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(Path(tiny_llm) / "config.json", tmp_path)
    chat = ChatTokenizer(str(tmp_path))
    ids = set(chat.tokenizer.convert_tokens_to_ids(control))
    for name in (*control, "<th<tool_call>ink>", "<|im_<think>end|>"):
        assert chat.encode(f"Tea {name}Pot") == chat.encode("Tea Pot")
        assert chat.chat_tokens(f"Tea {name}Pot") == chat.chat_tokens("Tea Pot")
        assert ids.isdisjoint(chat.encode(f"Tea {name}Pot"))
    for text in ordinary:
        assert chat.decode(chat.encode(f"a{text}b")) == f"a{text}b"


def test_no_prompts(engine):
    assert engine.generate([], 3, **DRAW) == []


def test_bf16_samples_from_its_own_density(tiny_llm):
    """In bf16 too, what is reported is the density sampled from; batches only round differently."""
    coarse = TransformersEngine(tiny_llm, dtype="bf16", device="cpu")
    samples = coarse.generate(PROMPTS, 6, **DRAW)
    scored = coarse.score(PROMPTS, tokens_of(samples), temperature=DRAW["temperature"])
    gaps = [
        np.abs(sample.log_probs - score).mean()
        for row, scores in zip(samples, scored, strict=True)
        for sample, score in zip(row, scores, strict=True)
    ]
    assert np.mean(gaps) < 0.1


@needs_model("smollm2-135m")
def test_the_real_llm():
    """SmolLM2-135M-Instruct, if it is in the cache: generate, score and transformers agree."""
    from mechanisms.llm.weights import locate

    real = TransformersEngine("smollm2-135m", dtype="fp32", device="cpu")
    prompts = ("How do I sleep better?", "Name a tea.")
    samples = real.generate(prompts, 3, max_new_tokens=12, temperature=0.7, seed=0)
    scored = real.score(prompts, tokens_of(samples), temperature=0.7)
    assert "<repo_name>" in special_names(real)  # a special token without a role
    check_that_text_holds_no_control_tokens(real)
    plain = AutoModelForCausalLM.from_pretrained(locate("smollm2-135m"), dtype=torch.float32)
    for prompt, row, scores in zip(prompts, samples, scored, strict=True):
        for sample, score in zip(row, scores, strict=True):
            np.testing.assert_allclose(sample.log_probs, score, atol=1e-3)
        expected = forward_log_probs(plain, real.chat_tokens(prompt), row[0].tokens, 0.7)
        np.testing.assert_allclose(row[0].log_probs, expected, atol=1e-3)

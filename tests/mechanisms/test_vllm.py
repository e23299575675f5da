"""Real vLLM, inside a process and behind a server, against the embedded engine on a tiny LLM.

It lives in an environment of its own (`make vllm`), so a process is started for each.
"""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest

from agents.users import BehaviouralUsers
from mechanisms.errors import BadInput
from mechanisms.llm.openai_engine import OpenAIEngine
from mechanisms.llm.server import ServerGaveOut
from mechanisms.llm.tempered import tempered_copy
from mechanisms.llm.transformers_engine import TransformersEngine
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request, record
from tests.mechanisms.llm_driver import Script
from tests.mechanisms.vllm_pool import INSERT, PROMPTS
from tests.tiny_llm import ADS, HashEncoder, build_tiny_llm

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"
# Nats per token. Both round each layer's states to bf16, in different places.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.15}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; run `make vllm`"),
]


def environment():
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny LLM with heads as wide as vLLM's kernels want them."""
    return str(build_tiny_llm(tmp_path_factory.mktemp("vllm") / "tiny", head_dim=32))


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def offline(request, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("offline") / "runs.json"
    command = [PYTHON, ROOT / "tests/mechanisms/vllm_pool.py", model, request.param, out]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    local = TransformersEngine(model, dtype=request.param, device="cpu")
    return json.loads(out.read_text()), local, TOLERANCE[request.param]


def agrees(found, expected, tolerance):
    """Token by token within the tolerance, and better than that on average."""
    errors = [
        np.asarray(one) - np.asarray(other)
        for row, others in zip(found, expected, strict=True)
        for one, other in zip(row, others, strict=True)
    ]
    errors = np.concatenate(errors)
    assert np.abs(errors).max() < tolerance
    assert np.abs(errors).mean() < tolerance / 5


def column(samples, name):
    return [[sample[name] for sample in row] for row in samples]


def test_offline_scores(offline):
    runs, local, tolerance = offline
    for run in runs:
        replies = [[*row, row[0], []] for row in column(run["samples"], "tokens")]
        expected = local.score(PROMPTS, replies, temperature=run["temperature"])
        agrees(run["scores"], expected, tolerance)
        drawn = [[*row, row[0], []] for row in column(run["samples"], "log_probs")]
        agrees(drawn, expected, tolerance)


def test_offline_replies(offline):
    runs, local, _ = offline
    texts = set()
    for run in runs:
        for row in run["samples"]:
            for sample in row:
                assert sample["ended"] == (sample["tokens"][-1] == local.end_token)
                assert sample["ended"] or len(sample["tokens"]) == 40
                assert not any(sample["forced"])
                texts.add(tuple(sample["tokens"]))
        # neither what else is written, nor an interruption, changes a reply
        assert column(run["rest"], "tokens") == column(run["samples"], "tokens")
        for row, others in zip(run["part"], run["samples"][2:0:-1], strict=True):
            assert [s["tokens"] for s in row] == [s["tokens"] for s in others[:3]]
    assert len(texts) > 90


def test_offline_guide(offline):
    runs, local, tolerance = offline
    insert = local.encode(INSERT)
    for run in runs:
        guided = run["guided"]
        expected = local.score(PROMPTS, column(guided, "tokens"), temperature=run["temperature"])
        agrees(column(guided, "log_probs"), expected, tolerance)
        stop = 2 + len(insert)
        whole = [s for row in guided for s in row if len(s["tokens"]) > 2]
        assert len(whole) > 20
        for sample in whole:
            assert sample["tokens"][2:stop] == insert
            assert np.flatnonzero(sample["forced"]).tolist() == list(range(2, stop))
            assert sample["ended"] or len(sample["tokens"]) == stop + 4


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """A server of the tiny LLM at temperature 0.7, and the directory that it serves."""
    cool = str(tempered_copy(model, 0.7, tmp_path_factory.mktemp("served") / "tiny-0.7"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", cool]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**28), "--block-size", "32"]
    # On a CPU vLLM dies where a prompt with a seed is run in parts.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
    log = Path(cool).with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment(), cwd=log.parent, stdout=out, stderr=out
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(360):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.5)
        yield url, cool
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def remote(served):
    url, cool = served
    return OpenAIEngine(url, cool, retries=1)


@pytest.fixture(scope="module")
def local(model):
    return TransformersEngine(model, dtype="fp32", device="cpu")


def check(local, prompts, samples):
    replies = [[sample.tokens for sample in row] for row in samples]
    expected = local.score(prompts, replies, temperature=0.7)
    agrees([[sample.log_probs for sample in row] for row in samples], expected, 1e-4)
    return replies, expected


def test_server(remote, local):
    draw = {"max_new_tokens": 40, "temperature": 0.7, "seed": 3}
    samples = remote.generate(PROMPTS, 8, **draw)
    replies, expected = check(local, PROMPTS, samples)
    scores = remote.score(PROMPTS, [[*row, []] for row in replies], temperature=0.7)
    agrees(scores, [[*row, []] for row in expected], 1e-4)
    assert {len(reply) for row in replies for reply in row} - {40}
    again = remote.generate(PROMPTS[:0:-1], 5, keys=[3, 2, 1], **draw)
    for row, others in zip(again, replies[:0:-1], strict=True):
        for sample, other in zip(row, others[:5], strict=True):
            np.testing.assert_array_equal(sample.tokens, other)
    insert = remote.encode(INSERT)
    guided = remote.generate(PROMPTS, 8, guide=Script(insert), **draw)
    check(local, PROMPTS, guided)
    assert sum(sample.forced.sum() for row in guided for sample in row) > 20 * len(insert)


def test_a_servers_errors(remote, served, model):
    url, _ = served
    with pytest.raises(BadInput, match=r"at temperature 0\.7, and gives log-probabilities at no"):
        remote.generate(PROMPTS, 1, max_new_tokens=4, temperature=1.0, seed=0)
    with pytest.raises(BadInput, match=r"HTTP 400: .*max_model_len|HTTP 400: .*maximum"):
        remote.generate(["Tea. " * 3000], 1, max_new_tokens=4, temperature=0.7, seed=0)
    with pytest.raises(BadInput, match=r"not .*; start it with that model"):
        OpenAIEngine(url, model, retries=1).score(["Tea"], [[[5]]], temperature=1.0)


class Watched:
    """An engine that keeps what it wrote."""

    def __init__(self, engine):
        self.engine, self.model, self.dtype = engine, engine.model, "fp32"
        self.encode, self.decode, self.score = engine.encode, engine.decode, engine.score
        self.calls = []

    def generate(self, prompts, n, **options):
        samples = self.engine.generate(prompts, n, **options)
        self.calls.append((prompts, samples))
        return samples


def test_recording_with_a_server(remote, local):
    """Guided insertion through a server: what is kept agrees with the embedded engine."""
    requests = [
        Request(f"Q{b}", query, f"U{b}", "A user.", ADS, range(len(ADS)))
        for b, query in enumerate(("How do I sleep?", "Which tea is good?", "Do my shoes fit?"))
    ]
    design = Design(replies=12, temperature=0.7, rules=Rules(max_tokens=60, loop=10**6))
    watched = Watched(remote)
    pool = record(requests, watched, BehaviouralUsers(HashEncoder()), design, seed=4)
    ((prompts, samples),) = watched.calls
    _, expected = check(local, prompts, samples)
    free = [
        score[~sample.forced].sum()
        for row, scores in zip(samples, expected, strict=True)
        for sample, score in zip(row, scores, strict=True)
    ]
    np.testing.assert_allclose(pool.replies["log_free"].to_numpy(), free, atol=1e-2)
    assert pool.exposure.sum() > 10
    again = record(requests, remote, BehaviouralUsers(HashEncoder()), design, seed=4)
    assert again.replies["text"].to_list() == pool.replies["text"].to_list()


def test_a_server_that_is_not_there(model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerGaveOut, match="no usable answer in 2 attempts"):
        OpenAIEngine(url, model, retries=1, pause=0.01).score(["Tea"], [[[5]]], temperature=1.0)

"""What the client of a completions server asks, and what it makes of the answers.

Servers that fail are in `tests/mechanisms/test_faults.py`, real ones in
`tests/mechanisms/test_vllm.py`.
"""

import asyncio
import json

import httpx2
import numpy as np
import pytest

from mechanisms.errors import BadInput
from mechanisms.llm.continuation import Ask
from mechanisms.llm.engines import make_engine
from mechanisms.llm.openai_engine import OpenAIEngine
from mechanisms.llm.server import ServerGaveOut
from mechanisms.llm.tempered import tempered_copy
from mechanisms.llm.transformers_engine import TransformersEngine
from tests.mechanisms.llm_driver import Chunks, Script

URL = "http://127.0.0.1:8000"
PROMPTS = ("How do I sleep better?", "Tea", "")
DRAW = {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}


class Server:
    """Answers as vLLM does; `change` may spoil an answer."""

    def __init__(self, model, names=("tiny",), change=lambda body, answer: answer):
        self.chunks, self.names, self.change = Chunks(model, 1.0), names, change
        self.bodies, self.headers = [], []

    def __call__(self, request):
        self.headers.append(request.headers)
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": name} for name in self.names]})
        body = json.loads(request.content)
        self.bodies.append(body)
        answer = self.change(body, self.answer(body))
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    def answer(self, body):
        prompt = body["prompt"]
        if body.get("echo"):
            (scores,) = self.chunks.answer([Ask(prompt, start=1)])
            tokens, log_probs, reason = prompt, [None, *scores.tolist()], "length"
        else:
            ask = Ask(prompt, body["max_tokens"], body["seed"], tuple(body.get("stop", ())))
            ((tokens, log_probs),) = self.chunks.answer([ask])
            reason = "length" if len(tokens) == ask.max_tokens else "stop"
        names = [f"token_id:{token}" for token in tokens]
        return {
            "choices": [
                {
                    "token_ids": None if body.get("echo") else tokens,
                    "finish_reason": reason,
                    "logprobs": {"tokens": names, "token_logprobs": log_probs},
                }
            ]
        }


def client(server, model, **options):
    options = {"served_model": "tiny", "retries": 2, "pause": 0.0} | options
    return OpenAIEngine(URL, model, transport=httpx2.MockTransport(server), **options)


def test_generate_and_score(tiny_llm, engine):
    server = Server(tiny_llm)
    remote = client(server, tiny_llm)
    samples = remote.generate(PROMPTS, 4, **DRAW)
    replies = [[sample.tokens for sample in row] for row in samples]
    local = engine.score(PROMPTS, replies, temperature=1.0)
    scored = remote.score(PROMPTS, replies, temperature=1.0)
    for row, *both in zip(samples, local, scored, strict=True):
        for sample, one, other in zip(row, *both, strict=True):
            np.testing.assert_allclose(sample.log_probs, one, atol=1e-4)
            np.testing.assert_allclose(other, one, atol=1e-4)
            assert sample.ended == (sample.tokens[-1] == engine.end_token)
    assert remote.score(PROMPTS[:2], [[[]], []], temperature=1.0)[1] == []
    for body in server.bodies:
        assert body["model"] == "tiny"
        assert body["temperature"] == body["top_p"] == body["repetition_penalty"] == 1
        assert (body["top_k"], body["min_p"]) == (-1, 0)
        assert body["presence_penalty"] == body["frequency_penalty"] == 0


def test_a_guide(tiny_llm, engine):
    insert = engine.encode(" You could try Tea Pot,")
    server, guide = Server(tiny_llm), Script(insert)
    samples = client(server, tiny_llm).generate(PROMPTS, 4, guide=guide, **DRAW)
    local = engine.score(PROMPTS, [[s.tokens for s in row] for row in samples], temperature=1.0)
    for row, scores in zip(samples, local, strict=True):
        for sample, score in zip(row, scores, strict=True):
            np.testing.assert_allclose(sample.log_probs, score, atol=1e-4)
    assert sum(sample.forced.sum() for row in samples for sample in row) >= 10 * len(insert)
    asked = [body for body in server.bodies if not body.get("echo")]
    assert all(body["include_stop_str_in_output"] for body in asked)


def test_what_is_finished_is_not_asked_again(tiny_llm):
    server, seen = Server(tiny_llm), {}
    remote = client(server, tiny_llm, concurrency=3)
    whole = remote.generate(PROMPTS, 3, done=seen.update, **DRAW)
    assert seen == dict(enumerate(whole))
    server.bodies.clear()
    rest = {}
    again = remote.generate(PROMPTS, 3, finished={0: seen[0], 2: seen[2]}, done=rest.update, **DRAW)
    assert len(server.bodies) == 3
    assert list(rest) == [1]
    assert again[0] == whole[0]
    for one, other in zip(again[1], whole[1], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    replies = [[sample.tokens for sample in row] for row in whole]
    scores = remote.score(PROMPTS, replies, temperature=1.0)
    server.bodies.clear()
    remote.score(PROMPTS, replies, temperature=1.0, finished=dict(enumerate(scores)))
    assert not server.bodies


def test_names_of_the_model(tiny_llm):
    for names in ([tiny_llm, "other"], [f"/models/{tiny_llm.rpartition('/')[2]}", "other"]):
        server = Server(tiny_llm, names)
        client(server, tiny_llm, served_model=None).generate(PROMPTS[:1], 1, **DRAW)
        assert server.bodies[0]["model"] == names[0]
    with pytest.raises(BadInput, match=r"serves gpt, other, not .*; start it with that model"):
        remote = client(Server(tiny_llm, ["gpt", "other"]), tiny_llm, served_model=None)
        remote.generate(PROMPTS[:1], 1, **DRAW)


def test_the_key_is_sent(tiny_llm, monkeypatch):
    monkeypatch.setenv("ADMARKET_API_KEY", "secret")
    server = Server(tiny_llm)
    client(server, tiny_llm).generate(PROMPTS[:1], 1, **DRAW)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}


def test_other_temperatures_are_refused(tiny_llm, engine, tmp_path):
    remote = client(Server(tiny_llm), tiny_llm)
    with pytest.raises(
        BadInput, match=r"at temperature 1, .* sample at 0.7, .*tempered .* 0.7 DIR"
    ):
        remote.generate(PROMPTS, 1, **{**DRAW, "temperature": 0.7})
    with pytest.raises(BadInput, match="at temperature 1"):
        remote.score(PROMPTS, [[]] * 3, temperature=1.3)
    cool = str(tempered_copy(tiny_llm, 0.7, tmp_path / "cool"))
    remote = client(Server(cool), cool)
    (samples,) = remote.generate(PROMPTS[:1], 4, **{**DRAW, "temperature": 0.7})
    replies = [[sample.tokens for sample in samples]]
    (scores,) = engine.score(PROMPTS[:1], replies, temperature=0.7)
    for sample, score in zip(samples, scores, strict=True):
        np.testing.assert_allclose(sample.log_probs, score, atol=1e-4)


def refusing(status, content):
    return lambda body, answer: httpx2.Response(status, json=content)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (refusing(400, {"error": {"message": "too\n long"}}), r"HTTP 400: too long$"),
        (refusing(401, {"detail": "who?"}), r"HTTP 401: who\?; set ADMARKET_API_KEY to its key$"),
        (refusing(404, {"message": "no such model"}), "HTTP 404: no such model$"),
    ],
)
def test_a_refusal_is_passed_on_at_once(tiny_llm, change, error):
    server = Server(tiny_llm, change=change)
    with pytest.raises(BadInput, match=error) as caught:
        client(server, tiny_llm, concurrency=1).generate(PROMPTS, 2, **DRAW)
    assert not isinstance(caught.value, ServerGaveOut)
    assert len(server.bodies) == 1
    assert "\n" not in str(caught.value)


def test_a_server_that_gives_out(tiny_llm):
    server = Server(tiny_llm, change=refusing(500, {"error": "EngineCore died"}))
    with pytest.raises(ServerGaveOut, match=r"3 attempts .*EngineCore died.* where it stopped"):
        client(server, tiny_llm, concurrency=1).generate(PROMPTS, 2, **DRAW)
    assert len(server.bodies) == 3


def with_choice(**entries):
    def change(body, answer):
        answer["choices"][0] |= entries
        return answer

    return change


def test_logits_for_log_probabilities(tiny_llm):
    def change(body, answer):
        log_probs = answer["choices"][0]["logprobs"]["token_logprobs"]
        log_probs[:] = [x + 30 for x in log_probs]
        return answer

    with pytest.raises(BadInput, match="never above 0; start it with --logprobs-mode raw_logprobs"):
        client(Server(tiny_llm, change=change), tiny_llm).generate(PROMPTS, 1, **DRAW)


def test_an_end_token_that_is_kept_back(tiny_llm, engine):
    def change(body, answer):
        choice = answer["choices"][0]
        choice["token_ids"] = [t for t in choice["token_ids"] if t != engine.end_token]
        log_probs = choice["logprobs"]["token_logprobs"]
        choice["logprobs"]["token_logprobs"] = log_probs[: len(choice["token_ids"])]
        return answer

    remote = client(Server(tiny_llm, change=change), tiny_llm)
    with pytest.raises(BadInput, match="ended a reply without its end-of-turn token"):
        remote.generate(PROMPTS, 10, **{**DRAW, "max_new_tokens": 60})
    # ended by a token of the server's own, which it names
    change = with_choice(finish_reason="stop", token_ids=[5], stop_reason=5)

    def first(body, answer):
        answer = change(body, answer)
        answer["choices"][0]["logprobs"]["token_logprobs"] = [-1.0]
        return answer

    (row,) = client(Server(tiny_llm, change=first), tiny_llm).generate(PROMPTS[:1], 1, **DRAW)
    assert row[0].tokens.tolist() == [5] * 24


def test_inside_an_event_loop(tiny_llm):
    async def notebook():
        return client(Server(tiny_llm), tiny_llm).generate(PROMPTS[:1], 1, **DRAW)

    assert len(asyncio.run(notebook())) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "http://:80"])
def test_addresses(tiny_llm, url):
    with pytest.raises(BadInput, match="is not an address like http"):
        OpenAIEngine(url, tiny_llm)


def test_make_engine(tiny_llm):
    assert isinstance(make_engine(model=tiny_llm, dtype="fp32"), TransformersEngine)
    remote = make_engine("openai", model=tiny_llm, server=f"{URL}/v1/", temperature=0.7)
    assert isinstance(remote, OpenAIEngine)
    assert remote.served_temperature == 0.7
    with pytest.raises(BadInput, match="'gpt' is unknown; choose from transformers, vllm, openai"):
        make_engine("gpt", model=tiny_llm)
    with pytest.raises(BadInput, match="openai needs the address of its server"):
        make_engine("openai", model=tiny_llm)
    with pytest.raises(BadInput, match="transformers asks no server"):
        make_engine(model=tiny_llm, server=URL)
    with pytest.raises(BadInput, match=r"run `make vllm`"):
        make_engine("vllm", model=tiny_llm)

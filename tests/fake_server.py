"""A completions server over the tiny LLM, as vLLM answers, which fails on demand.

One request is one batch of one, so an answer depends on the request alone: not on what else the
server is doing, nor on whether it was restarted. `FakeServer` runs in threads of this process;
`ServerProcess` can be killed for real.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from mechanisms.llm.base import END
from mechanisms.llm.transformers_engine import TransformersEngine

STATUS = {"500": 500, "503": 503, "429": 429, "408": 408}
SPOILT = ("half-json", "html", "no-logprobs", "nan", "no-tokens", "no-choices", "too-few")
KINDS = (*STATUS, *SPOILT, "reset", "cut")  # those that cost no time
SERVED = "tiny"


class TokenEngine(TransformersEngine):
    """Its prompts are JSON lists of token ids."""

    def chat_tokens(self, prompt: str) -> list[int]:
        return json.loads(prompt)


class StopAt:
    """A guide that ends a reply behind one of the stop strings."""

    def __init__(self, engine: TokenEngine, stops: Iterable[str]) -> None:
        self.engine, self.stops, self.found = engine, list(stops), None

    def step(self, prompt, sample, tokens):
        text = self.engine.tokenizer.decode(tokens)
        self.found = next((stop for stop in self.stops if stop in text), None)
        return () if self.found is None else END


def complete(engine: TokenEngine, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a completions request."""
    prompt, most = body["prompt"], body["max_tokens"]
    assert all(isinstance(token, int) for token in prompt), "the prompt must be token ids"
    assert body["temperature"] == body["top_p"] == 1 and body["top_k"] == -1, "no truncation"
    tokens, log_probs, written, stop_reason = [], [], [], None
    if body.get("echo"):
        scored = engine.score([json.dumps(prompt[:1])], [[prompt[1:]]], temperature=1.0)
        tokens, log_probs = list(prompt), [None, *scored[0][0].tolist()]
    if most:
        assert body.get("stop_token_ids", [engine.end_token]) == [engine.end_token]
        assert body.get("include_stop_str_in_output") or not body.get("stop")
        guide = StopAt(engine, body.get("stop", ()))
        ((sample,),) = engine.generate(
            [json.dumps(prompt)],
            1,
            max_new_tokens=most,
            temperature=1.0,
            seed=body["seed"],
            guide=guide,
        )
        written = sample.tokens.tolist()
        tokens += written
        log_probs += sample.log_probs.tolist()
        stop_reason = engine.end_token if sample.ended else guide.found
    choice = {
        "index": 0,
        "text": engine.tokenizer.decode(tokens),
        "token_ids": written,
        "finish_reason": "length" if stop_reason is None else "stop",
        "stop_reason": stop_reason,
        "logprobs": {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": log_probs,
        },
    }
    if not body.get("return_token_ids"):
        del choice["token_ids"]
    return {"object": "text_completion", "model": SERVED, "choices": [choice]}


def spoil(answer: dict[str, Any], fault: str) -> bytes:
    """An answer that came through, but is of no use."""
    choice = answer["choices"][0]
    if fault == "no-logprobs":
        choice["logprobs"] = None
    elif fault == "nan":
        choice["logprobs"]["token_logprobs"][-1] = float("nan")
    elif fault == "no-tokens":
        choice["token_ids"], choice["logprobs"]["token_logprobs"] = [], []
    elif fault == "too-few":
        choice["logprobs"]["token_logprobs"].pop()
    elif fault == "no-choices":
        answer["choices"] = []
    data = json.dumps(answer).encode()
    if fault == "html":
        return b"<html>Bad gateway</html>"
    return data[: len(data) // 2] if fault == "half-json" else data


def sometimes(seed: int, rate: float, kinds: Iterable[str]) -> Callable[[int], str | None]:
    """A fault of one of `kinds` in each request with probability `rate`."""
    rng, kinds = random.Random(seed), list(kinds)
    return lambda _: rng.choice(kinds) if rng.random() < rate else None


class FakeServer:
    """Serves on a port of this machine.

    Args:
        engine: the LLM.
        faults: from the number of a request (of completions, from 0) to a fault or None.
        port: 0 for any.
        log: also write what was answered into this file.
        hang: seconds that a hanging request takes.
        slow: seconds that each answer takes longer.
    """

    def __init__(
        self,
        engine: TokenEngine,
        faults: Callable[[int], str | None] = lambda _: None,
        port: int = 0,
        log: Path | None = None,
        hang: float = 3.0,
        slow: float = 0.0,
    ) -> None:
        self.engine, self.faults, self.hang, self.slow, self.log = engine, faults, hang, slow, log
        self.count = 0
        self.served: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.guard, self.computing = threading.Lock(), threading.Lock()
        handler = type("Bound", (_Handler,), {"fake": self})
        self.server = _Quiet(("127.0.0.1", port), handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def next_fault(self) -> str | None:
        with self.guard:
            self.count += 1
            return self.faults(self.count - 1)

    def note(self, body: bytes, fault: str | None) -> None:
        key = hashlib.sha256(body).hexdigest()[:16]
        with self.guard:
            if fault:
                self.failed[fault] += 1
            else:
                self.served[key] += 1
            if self.log:
                with self.log.open("a") as file:
                    file.write(f"{key} {fault or 'ok'}\n")


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """Clients that went away are what this is about; anything else must be seen."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        answer = {"object": "list", "data": [{"id": SERVED}]} if known else {"error": "not found"}
        self._send(200 if known else 404, json.dumps(answer).encode())

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        fake, fault, body = self.fake, self.fake.next_fault(), json.loads(raw)
        if self.path != "/v1/completions" or body["model"] != SERVED:
            return self._send(404, b'{"error": {"message": "no such model"}}')
        if fault:
            fake.note(raw, fault)
        if fault == "hang":
            time.sleep(fake.hang)
        if fault in ("hang", "reset"):
            # Closed at once and without a goodbye: the client sees a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return None
        if fault in STATUS:
            return self._send(STATUS[fault], b'{"error": {"message": "injected"}}')
        time.sleep(fake.slow)
        try:
            with fake.computing:
                answer = complete(fake.engine, body)
        except (AssertionError, KeyError) as error:
            return self._send(400, json.dumps({"error": {"message": repr(error)}}).encode())
        data = spoil(answer, fault) if fault in SPOILT else json.dumps(answer).encode()
        if fault == "cut":
            self._send(200, data[: len(data) // 2], promised=len(data))
            self.close_connection = True
            return None
        self._send(200, data)
        if not fault:
            fake.note(raw, None)
        return None

    def _send(self, status: int, data: bytes, promised: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if promised is None else promised))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class ServerProcess:
    """A `FakeServer` of its own process, to be killed and started again on the same port.

    It is a fork of a process that has the LLM in memory, so starting takes no time.
    """

    def __init__(self, model: str, slow: float = 0.0) -> None:
        command = [sys.executable, "-m", "tests.fake_server", model, str(slow)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, **pipes, env=environment)
        self.url = self._said()

    def start(self) -> None:
        self._tell("start")

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it is doing."""
        self._tell("kill")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)

    def _tell(self, order: str) -> None:
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        assert self._said() == order

    def _said(self) -> str:
        assert select.select([self._process.stdout], [], [], 60)[0], "the server does not answer"
        return self._process.stdout.readline().strip()


def main(model: str, slow: str) -> None:
    """Obey `start` and `kill` on stdin, each answered when done; end with it."""
    torch.set_num_threads(1)
    engine = TokenEngine(model, dtype="fp32", device="cpu")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    child = 0
    for line in sys.stdin:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        if line.strip() == "start":
            server = FakeServer(engine, port=port, slow=float(slow))
            child = os.fork()
            if not child:
                server.server.serve_forever()
            server.server.server_close()
        print(line.strip(), flush=True)
    if child:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])

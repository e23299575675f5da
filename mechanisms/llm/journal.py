"""A recording that can be interrupted: finished results are kept in a journal, and not redone.

The journal is a text file: a header, then a line per batch of results, each with a checksum. It is
only ever appended to, and every line is on the disk before the next batch begins; so whatever
happens (kill -9, a full disk, a power cut), at most the last line is damaged, and left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mechanisms.errors import BadInput
from mechanisms.llm.base import (
    END,
    NONE_FINISHED,
    Engine,
    Guide,
    Mixed,
    Sample,
    Samples,
    Scores,
)
from mechanisms.llm.locking import open_locked
from mechanisms.llm.weights import identity

LOG = logging.getLogger(__name__)
HEADER = b"admarket journal 1\n"
_SETTINGS = ("dtype", "device", "batch_rows")
"""Attributes of an engine that may change what it writes, if only in the last bit."""


class Journaled:
    """An `Engine` around `engine` that keeps what is finished in the journal `path`.

    A call is known by a digest of all its arguments and of the engine, so one journal serves a
    whole recording. What a server calls its model (`served_model`) is part of it where it is given;
    where the engine asks the server, it does so in its first call, too late to name calls by, and
    then takes nothing but the model's own name.

    A guide is not part of it (calls that differ in nothing else are told apart by their order): it
    is shown the journal's replies again, and must write into them what it wrote then. A call that
    broke off with an error may be made again, with a fresh guide.

    A process that finds the journal in use by another works without: both then come out right, and
    only the first can be resumed. Where `wait` is given, it is told so in a line and the process
    waits until the other is through, or dead, and has the journal then: whoever waits has to look
    whether there is anything left to do.

    Raises:
        BadInput: `path` cannot be written, or is not a journal; later, if the disk is full.
    """

    def __init__(
        self, engine: Engine, path: str | Path, wait: Callable[[str], None] | None = None
    ) -> None:
        self.engine = engine
        self.path = Path(path)
        self._engine_id = [type(engine).__name__, *identity(engine.model)]
        self._engine_id += [str(getattr(engine, name, None)) for name in _SETTINGS]
        for name in ("served_model", "adapter"):
            self._engine_id += filter(None, [getattr(engine, name, None)])
        self._guard = threading.Lock()
        self._known: dict[str, dict[int, Any]] = {}
        self._guided: Counter[str] = Counter()
        self._end = 0
        self._file = open_locked(self.path, wait)
        if self._file is not None:
            try:
                self._read(self._file)
            except BaseException:
                self.close()
                raise

    def __getattr__(self, name: str) -> Any:
        if name == "engine":  # not yet there, as in a copy
            raise AttributeError(name)
        return getattr(self.engine, name)

    def __enter__(self) -> Journaled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the journal; it stays where it is."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def delete(self) -> None:
        """Close and remove the journal, once its results are kept elsewhere, if it is ours."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
        self.close()

    def clear(self) -> None:
        """Begin anew, once all results so far are kept elsewhere."""
        with self._guard:
            self._known.clear()
            self._guided.clear()
            if self._file is not None:
                self._end = len(HEADER)
                os.ftruncate(self._file.fileno(), self._end)

    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        guide: Guide | None = None,
        keys: Sequence[int] | None = None,
        finished: Mapping[int, Samples] = NONE_FINISHED,
        done: Callable[[Mapping[int, Samples]], None] | None = None,
    ) -> list[list[Sample]]:
        """See `mechanisms.llm.base.Engine.generate`."""
        streams = list(range(len(prompts)) if keys is None else keys)
        asked = [n, max_new_tokens, temperature, seed, streams, guide is not None]
        call = self._digest("generate", list(prompts), asked)
        with self._guided_call(call, guide, max_new_tokens, finished, done) as work:
            work.results = self.engine.generate(
                prompts,
                n,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                guide=guide,
                keys=keys,
                finished=work.finished,
                done=work.done,
            )
        return work.results

    def generate_mixture(
        self,
        prompts: Sequence[Sequence[str]],
        shares: NDArray[np.float64],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        guide: Guide | None = None,
        keys: Sequence[int] | None = None,
        finished: Mapping[int, Sequence[Mixed]] = NONE_FINISHED,
        done: Callable[[Mapping[int, Sequence[Mixed]]], None] | None = None,
    ) -> list[list[Mixed]]:
        """See `mechanisms.llm.mixture.generate_mixture`."""
        from mechanisms.llm.mixture import generate_mixture  # takes torch along

        streams = list(range(len(prompts)) if keys is None else keys)
        asked = [shares.tolist(), max_new_tokens, temperature, seed, streams, guide is not None]
        call = self._digest("mixture", list(map(list, prompts)), asked)
        with self._guided_call(call, guide, max_new_tokens, finished, done) as work:
            work.results = generate_mixture(
                self.engine,
                prompts,
                shares,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                guide=guide,
                keys=keys,
                finished=work.finished,
                done=work.done,
            )
        return work.results

    @contextlib.contextmanager
    def _guided_call(
        self,
        call: str,
        guide: Guide | None,
        max_new_tokens: int,
        finished: Mapping[int, Any],
        done: Callable[[Mapping[int, Any]], None] | None,
    ) -> Iterator[_Work]:
        """A call in which a guide may write: within, the engine does what is not finished yet.

        It is counted once it is through, so that whoever tries again after an error goes on.
        """
        name = call if guide is None else f"{call}-{self._guided[call] + 1}"
        work = _Work(self, name, finished, done)
        yield work
        work.keep_the_rest(work.results)
        if guide is None:
            return
        # Only now: an engine that does whole batches may have shown the guide some of them itself.
        for p in sorted(set(work.found) - work.reported):
            for k, reply in enumerate(work.found[p]):
                sample = reply.sample if isinstance(reply, Mixed) else reply
                if not _replay(guide, p, k, sample, max_new_tokens):
                    raise BadInput(
                        f"journal {self.path} holds replies with other insertions than "
                        "this recording makes; delete it and record again"
                    )
        self._guided[call] += 1

    def score(
        self,
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        finished: Mapping[int, Scores] = NONE_FINISHED,
        done: Callable[[Mapping[int, Scores]], None] | None = None,
    ) -> list[list[NDArray[np.float64]]]:
        """See `mechanisms.llm.base.Engine.score`."""
        tokens = [[list(map(int, reply)) for reply in each] for each in replies]
        call = self._digest("score", list(prompts), [temperature, tokens])
        work = _Work(self, call, finished, done)
        results = self.engine.score(
            prompts,
            replies,
            temperature=temperature,
            finished=work.finished,
            done=work.done,
        )
        work.keep_the_rest(results)
        return results

    def _digest(self, *call: Any) -> str:
        text = json.dumps([self._engine_id, call], default=lambda number: number.item())
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _read(self, file: BinaryIO) -> None:
        """Take in all intact lines, and note where the next one goes: behind the last of them."""
        start = file.read(len(HEADER))
        if not HEADER.startswith(start):
            raise BadInput(f"{self.path} is no journal of this version; delete or rename it")
        if start != HEADER:
            self._write(HEADER)
            return
        self._end, damaged = len(HEADER), 0
        for line in file:
            try:
                checksum, body = line[:-1].split(b" ", 1)
                intact = line.endswith(b"\n") and checksum == _checksum(body)
            except ValueError:
                intact = False
            if not intact:
                damaged += 1
                continue
            entry = json.loads(body)
            results = {int(p): _unpack(row) for p, row in entry["results"].items()}
            self._known.setdefault(entry["call"], {}).update(results)
            self._end = file.tell()
        if damaged:
            LOG.warning(
                "journal %s: %d damaged line(s) left out; what they held is done again",
                self.path,
                damaged,
            )

    def _append(self, call: str, results: Mapping[int, Any]) -> None:
        body = {"call": call, "results": {int(p): _pack(row) for p, row in results.items()}}
        text = json.dumps(body, separators=(",", ":")).encode()
        with self._guard:
            self._known.setdefault(call, {}).update(results)
            if self._file is not None:
                self._write(_checksum(text) + b" " + text + b"\n")

    def _write(self, line: bytes) -> None:
        """Put `line` at the end, over what a write that broke off may have left there."""
        fd, at = self._file.fileno(), self._end
        try:
            while line:
                wrote = os.pwrite(fd, line, at)
                line, at = line[wrote:], at + wrote
            os.fsync(fd)
        except OSError as error:
            raise BadInput(
                f"cannot write journal {self.path} ({error.strerror}); make room there and "
                "run again: what is finished is kept"
            ) from None
        self._end = at


class _Work:
    """One call: `found` was in the journal, `finished` is all that was there before it.

    `reported` has been done since, `results` is everything.
    """

    results: Sequence[Any] = ()

    def __init__(
        self,
        journal: Journaled,
        call: str,
        finished: Mapping[int, Any],
        done: Callable[[Mapping[int, Any]], None] | None,
    ) -> None:
        known = journal._known.get(call, {})
        self.found = {p: row for p, row in known.items() if p not in finished}
        self.finished = {**self.found, **finished}
        self.reported: set[int] = set(finished)
        self._journal, self._call, self._tell = journal, call, done
        if self.found:
            LOG.info("journal %s: %d prompt(s) are already done", journal.path, len(self.found))
            if done:
                done(self.found)

    def done(self, results: Mapping[int, Any]) -> None:
        self._journal._append(self._call, results)
        self.reported.update(results)
        if self._tell:
            self._tell(results)

    def keep_the_rest(self, results: Sequence[Any]) -> None:
        """Keep what the engine returned without reporting it."""
        there = self.reported | self.found.keys()
        if rest := {p: row for p, row in enumerate(results) if p not in there}:
            self.done(rest)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _pack(row: Samples | Scores | Sequence[Mixed]) -> list[Any]:
    return [_packed(each) for each in row]


def _packed(each: Sample | Mixed | NDArray[np.float64]) -> list[Any]:
    """Plain lists; Python writes every float so that it reads back as the same number."""
    if isinstance(each, Mixed):
        return [*_packed(each.sample), each.under.tolist()]
    if isinstance(each, Sample):
        forced = np.flatnonzero(each.forced).tolist()
        return [each.tokens.tolist(), each.log_probs.tolist(), forced, each.ended]
    return [np.asarray(each, dtype=np.float64).tolist()]


def _unpack(row: list[Any]) -> list[Any]:
    return [_unpacked(each) for each in row]


def _unpacked(each: list[Any]) -> Sample | Mixed | NDArray[np.float64]:
    if len(each) == 1:
        return np.array(each[0], dtype=np.float64)
    sample = _sample(*each[:4])
    return Mixed(sample, np.array(each[4], dtype=np.float64)) if len(each) > 4 else sample


def _sample(tokens: list[int], log_probs: list[float], forced: list[int], ended: bool) -> Sample:
    was_forced = np.zeros(len(tokens), dtype=bool)
    was_forced[forced] = True
    return Sample(
        np.array(tokens, dtype=np.int64), np.array(log_probs, dtype=np.float64), was_forced, ended
    )


def _replay(guide: Guide, prompt: int, index: int, sample: Sample, max_new_tokens: int) -> bool:
    """Show the guide a finished reply as an engine does; whether it wrote then what it does now."""
    tokens, queue, order = sample.tokens.tolist(), [], ()
    for i, (token, forced) in enumerate(zip(tokens, sample.forced.tolist(), strict=True)):
        if isinstance(order, str) or forced != bool(queue):
            return False
        if forced and queue.pop(0) != token:
            return False
        last = i + 1 == len(tokens) and sample.ended
        if not forced and not last and i + 1 < max_new_tokens:
            order = guide.step(prompt, index, tokens[: i + 1])
            queue = [] if isinstance(order, str) else list(order)
    by_guide = isinstance(order, str) and order == END
    return sample.ended or by_guide or len(tokens) == max_new_tokens

"""Checkpoints: a market that is stopped, by whatever, goes on where it was, to the same bytes.

A folder holds the unfinished run of one market:

    rounds-0-1200.npy, rounds-1200-1800.npy    the ledger's rows, as they are recorded
    plans-...npz, replies-...parquet           what was planned; what live mode has written
    state-1800.npz                             all else that changes (`MarketModel.snapshot`)
    checkpoint-1800.json                       names these files and their SHA-256, and what the
                                               run belongs to; its own digest beside

A checkpoint is there as soon as the last of these has its name. Every file is written beside and
renamed, and none is ever changed. The last two checkpoints are kept: where the newest is damaged,
the one before serves. Rows are kept as arrays, not as the frames of the results, because they are
the ledger's own: exact, and back in it without a conversion. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import polars as pl

import agents
import market
import mechanisms
from market.errors import BadInput, Stopped
from market.model import MarketModel
from market.packing import pack, unpack
from mechanisms.kernels import kernel

SCHEMA = 1
EVERY = 5.0
"""Seconds between checkpoints."""
SHARE = 0.02  # of the time goes into writing checkpoints, at most
PART_BYTES = 2**26  # of rows, so that memory stays flat
KEPT = 2  # checkpoints
Bytes: TypeAlias = bytes | memoryview
_VERSIONS = (
    *("admarket", "numpy", "numba", "scipy", "mesa", "polars", "torch", "transformers"),
    *("botorch", "gpytorch", "linear-operator"),  # IAMFM plans with them
)
_SUFFIXES = {"rounds": "npy", "plans": "npz", "replies": "parquet"}


class Checkpoints:
    """Writes the checkpoints of one market, and puts it back where the last one stands.

        kept = Checkpoints("unfinished", market)
        kept.resume()
        result = market.run(after_round=kept)

    Called after a round, it writes when it is time, and after the last round.

    Args:
        folder: of this market alone; made when it is needed.
        model: the market, as it is made before its first round.
        every: seconds between checkpoints; more where one takes long to write, so that no more than
            a fiftieth of the time goes into them, and fewer where many rows come together.
        say: told in a line of a checkpoint that is damaged.
        belongs: what the run belongs to, beside what is said of `model` itself (`belongs_to`).
        whole: what a user removes to begin anew, where `folder` is a part of more.
    """

    def __init__(
        self,
        folder: str | Path,
        model: MarketModel,
        *,
        every: float = EVERY,
        say: Callable[[str], None] = lambda _: None,
        belongs: Mapping[str, Any] | None = None,
        whole: Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.model = model
        self.every = every
        self._say = say
        self._whole = whole or self.folder
        self._belongs = {**belongs_to(model), **(belongs or {})}
        self._parts: list[dict[str, Any]] = []
        self._round = 0  # of the newest checkpoint
        self._most = max(1, PART_BYTES // model.ledger.row_bytes)
        self._next = time.monotonic() + every

    def __call__(self) -> None:
        """A round is over."""
        model = self.model
        if (
            not model.running
            or time.monotonic() >= self._next
            or model.round - self._round >= self._most
        ):
            self.write()

    def resume(self) -> int:
        """Put the market where the newest whole checkpoint stands; returns its round, or 0.

        Raises:
            BadInput: none is whole, or it belongs to another market, pool or version; a learner
                keeps what no checkpoint can hold.
        """
        found = self._newest()
        if found is None:
            self.model.snapshot()  # now, rather than after hours, where it cannot be stored
        else:
            self._refuse_foreign(found["belongs"])
            self._parts, self._round = found["parts"], found["round"]
            self._restore(found["state"])
        self._drop(lambda kind, round: round > self._round)
        self._next = time.monotonic() + self.every
        return self._round

    def write(self) -> None:
        """Write a checkpoint of the market as it stands, if it has moved since the last one.

        Raises:
            Stopped: it cannot be written; the one before is still there.
            BadInput: a learner keeps what no checkpoint can hold.
            Unbalanced: as `Ledger.rows`; nothing that does not balance is kept.
        """
        first, last, begun = self._round, self.model.round, time.monotonic()
        if last == first:
            return
        state = self.model.snapshot(since=first)
        records = state.pop("records")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = [
                {"kind": kind, **self._put(f"{kind}-{first}-{last}.{suffix}", *_ENCODE[kind](rows))}
                for kind, suffix in _SUFFIXES.items()
                if (rows := records[kind])
            ]
            body = {
                "round": last,
                "belongs": self._belongs,
                "state": self._put(f"state-{last}.npz", pack(state)),
                "parts": [*self._parts, *fresh],
            }
            self._put(f"checkpoint-{last}.json", _sealed(body))
        except OSError as error:
            raise Stopped(
                f"cannot write {self.folder} ({error.strerror or error}); mend that and run again: "
                f"it goes on at round {first:,}"
            ) from None
        self._parts, self._round = body["parts"], last
        if self.model.platform.live is not None:
            self.model.platform.live.settled()
        recent = [_round_of(path) for path in self._commits()[:KEPT]]
        self._drop(lambda kind, round: kind in ("checkpoint", "state") and round not in recent)
        now = time.monotonic()
        self._next = now + max(self.every, (now - begun) / SHARE)

    def _newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None if there is none at all."""
        damage = ""
        for path in self._commits():
            try:
                body = self._opened(path)
                for each in (body["state"], *body["parts"]):
                    self._read(each)
            except _Damaged as found:
                damage = damage or f"{path.name}: {found}"
                continue
            if damage:
                self._say(f"{self.folder}: {damage}; the checkpoint before it is whole")
            return body
        if damage:
            raise BadInput(
                f"{self.folder} holds no whole checkpoint ({damage}); remove it to begin anew"
            )
        return None

    def _opened(self, path: Path) -> dict[str, Any]:
        """What a checkpoint says; `_Damaged` if it is not what was written."""
        try:
            sealed = json.loads(path.read_bytes())
            schema, body, digest = sealed["schema"], sealed["body"], sealed["sha256"]
        except (ValueError, KeyError, TypeError, OSError):
            raise _Damaged("cannot be read") from None
        if schema != SCHEMA:
            raise BadInput(
                f"{path} has schema {schema!r:.20}, this version reads {SCHEMA}; go on with the "
                f"version that wrote it, or remove {self._whole} to begin anew"
            )
        if digest != _digest(_canonical(body)):
            raise _Damaged("does not match its checksum")
        return body

    def _refuse_foreign(self, theirs: Mapping[str, Any]) -> None:
        for what, ours in self._belongs.items():
            if theirs.get(what) != ours:
                there, here = (_short(each) for each in (theirs.get(what), ours))
                differs = f" ({there} there, {here} here)" if there != here else ""
                raise BadInput(
                    f"{self.folder} was begun with another {what}{differs}; go on with that one, "
                    f"or remove {self._whole} to begin anew"
                )

    def _restore(self, state: Mapping[str, str]) -> None:
        records = {kind: self._records(kind) for kind in _SUFFIXES}
        try:
            self.model.restore(unpack(self._read(state)) | {"records": records})
        except BadInput:
            raise
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            # files that match their checksums, and yet are none of ours
            raise BadInput(
                f"{self.folder} cannot be read ({str(error).splitlines()[0]}); "
                "remove it to begin anew"
            ) from None

    def _records(self, kind: str) -> Iterator[Any]:
        """The records of a kind, part by part."""
        for part in self._parts:
            if part["kind"] == kind:
                yield from _DECODE[kind](self._read(part))

    def _put(self, name: str, *pieces: Bytes) -> dict[str, str]:
        """Write a file in one move; returns what a checkpoint says of it."""
        fresh, digest = self.folder / f".{name}.new", hashlib.sha256()
        with fresh.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.folder / name)
        return {"file": name, "sha256": digest.hexdigest()}

    def _read(self, named: Mapping[str, str]) -> bytes:
        """A file that a checkpoint names; `_Damaged` if it is not what it was."""
        try:
            content = (self.folder / named["file"]).read_bytes()
        except OSError as error:
            raise _Damaged(f"{named['file']} cannot be read ({error.strerror})") from None
        if _digest(content) != named["sha256"]:
            raise _Damaged(f"{named['file']} does not match its checksum")
        return content

    def _commits(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.folder.glob("checkpoint-*.json"), key=_round_of, reverse=True)

    def _drop(self, unneeded: Callable[[str, int], bool]) -> None:
        """Remove files that are `unneeded` by kind and last round, and those of writes cut off."""
        for kind in ("checkpoint", "state", *_SUFFIXES):
            for path in self.folder.glob(f"{kind}-*"):
                if unneeded(kind, _round_of(path)):
                    path.unlink(missing_ok=True)
            for path in self.folder.glob(f".{kind}-*.new"):
                path.unlink(missing_ok=True)


def belongs_to(model: MarketModel) -> dict[str, Any]:
    """What a checkpoint of `model` belongs to: market, mechanism, replies, seed, and our code.

    The processor is not in it: on another kind last digits may differ, and nothing else.
    """
    scenario, mechanism = model.scenario, model.platform.mechanism
    people = [
        [person.kind, person.value, person.target_roi, person.budget, person.title]
        for person in model.advertisers
    ]
    learners = [
        [group.index.tolist(), spec.name, dict(spec.parameters)]
        for group in model.groups
        for spec in [scenario.advertisers[group.index[0]].learner]
    ]
    text = json.dumps([people, learners], sort_keys=True, default=str)
    return {
        "seed": int(model.seed),
        "number of rounds": scenario.rounds,
        "number of requests": scenario.requests_per_round,
        "number of replications": scenario.replications,
        "mechanism": repr(mechanism) if is_dataclass(mechanism) else mechanism.name,
        "population": _digest(text.encode()),
        "pool of replies": model.platform.pool.content_hash,
        "stream of live replies": getattr(model.platform.live, "seed", None),
        **made_with(),
    }


@cache
def made_with() -> dict[str, str]:
    """What code a run's bytes depend on: versions, and a digest of our own source."""
    return {
        "python": platform.python_version(),
        "kernel": kernel(),
        **{f"version of {name}": _version(name) for name in _VERSIONS},
        "source code of admarket": source_digest(agents, market, mechanisms),
    }


def source_digest(*packages: ModuleType) -> str:
    """SHA-256 of the Python files of `packages`, as they are on the disk now."""
    digest = hashlib.sha256()
    for package in packages:
        (home,) = map(Path, package.__path__)
        for path in sorted(home.rglob("*.py")):
            name = path.relative_to(home.parent).as_posix()
            digest.update(f"{name} {_digest(path.read_bytes())}\n".encode())
    return digest.hexdigest()


class _Damaged(Exception):
    """A checkpoint that is not whole; says why."""


def _sealed(body: Mapping[str, Any]) -> bytes:
    sealed = {"schema": SCHEMA, "sha256": _digest(_canonical(body)), "body": body}
    return json.dumps(sealed, indent=1).encode()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _round_of(path: Path) -> int:
    """The last number in a name."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _short(value: Any) -> str:
    """What is told of a value: all of it in a line, digests by their beginning."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _rows_to_bytes(parts: list[np.ndarray]) -> list[Bytes]:
    """As `np.save` writes them, but without a copy of the rows, which are most of a checkpoint."""
    (rows,), header = parts, io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
    return [header.getvalue(), rows.view(np.uint8).data]


def _frames_to_bytes(frames: list[pl.DataFrame]) -> list[Bytes]:
    file = io.BytesIO()
    pl.concat(frames, how="diagonal").write_parquet(file)
    return [file.getvalue()]


_ENCODE: dict[str, Callable[[list], list[Bytes]]] = {
    "rounds": _rows_to_bytes,
    "plans": lambda plans: [pack(plans)],
    "replies": _frames_to_bytes,
}
_DECODE: dict[str, Callable[[bytes], list]] = {
    "rounds": lambda content: [np.load(io.BytesIO(content), allow_pickle=False)],
    "plans": unpack,
    "replies": lambda content: [pl.read_parquet(io.BytesIO(content))],
}

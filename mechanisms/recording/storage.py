"""A pool on disk: two Parquet tables and a manifest, and nothing that is ever executed.

`replies.parquet` has a row per reply, with the arrays of the pool as columns; `requests.parquet` a
row per request. `manifest.json` names the content hash, which is checked on loading, and a checksum
of each table and of itself: the content hash leaves out whose queries and whose titles these are,
and tables are checked before they are read, for a damaged one may claim any size.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool

SCHEMA = 1
_PER_REPLY = ("log_ref", "log_gen", "quality", "malformed")
_PER_AD = ("ctr", "exposure")
_TABLES = ("replies.parquet", "requests.parquet")
_FILES = ("manifest.json", *_TABLES)
_SUMS = "sha256"
"""Checksums in the manifest, by file; pools of before have none, and are known by their content."""
_DAMAGE = (
    *(OSError, AttributeError, KeyError, TypeError, ValueError),  # BadInput is a ValueError
    *(RecursionError, pl.exceptions.PolarsError, pl.exceptions.PanicException),
)


def save_pool(pool: ReplyPool, folder: str | Path) -> Path:
    """Write `pool` into `folder` in one step: it is there whole, or not at all.

    A pool that is already there stays if it is the same, and else is replaced only after the new
    one is complete.

    Raises:
        BadInput: `folder` is a file, or holds anything that is no part of a pool.
    """
    folder = Path(folder)
    _refuse_what_is_no_pool(folder)
    if _holds(folder, pool.content_hash):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    B, M, n = pool.shape
    replies = pool.replies
    if replies is None:
        replies = pl.DataFrame(
            {"request": np.repeat(np.arange(B), M), "reply": np.tile(np.arange(M), B)}
        )
    requests = pl.DataFrame({"request": np.arange(B)}) if pool.requests is None else pool.requests
    columns = [pl.Series(f"pool_{name}", getattr(pool, name).ravel()) for name in _PER_REPLY]
    columns += [_lists(f"pool_{name}", getattr(pool, name).reshape(B * M, n)) for name in _PER_AD]
    columns += [_lists(f"extra_{k}", each.reshape(B * M, -1)) for k, each in pool.extras.items()]
    manifest = {
        **pool.manifest,
        "schema": SCHEMA,
        "shape": [B, M, n],
        "num_advertisers": pool.num_advertisers,
        "extras": {name: list(array.shape) for name, array in pool.extras.items()},
        "content_hash": pool.content_hash,
        "tables": [pool.replies is not None, pool.requests is not None],
    }
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        replies.with_columns(columns).write_parquet(scratch / "replies.parquet")
        requests.with_columns(_lists("pool_ads", pool.ads)).write_parquet(
            scratch / "requests.parquet"
        )
        sums = {name: _sum((scratch / name).read_bytes()) for name in _TABLES}
        manifest[_SUMS] = {**sums, "manifest.json": _sum(_canonical(manifest))}
        text = json.dumps(manifest, indent=2, sort_keys=True)
        (scratch / "manifest.json").write_text(text + "\n", encoding="utf-8")
        os.chmod(scratch, 0o755)
        _swap(scratch, folder, pool.content_hash)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def load_pool(folder: str | Path) -> ReplyPool:
    """Read a pool that `save_pool` wrote.

    Raises:
        BadInput: no pool there, another schema, or content that does not match its hash.
    """
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        _check_sums(folder, manifest)
        pool = _read(folder, manifest) if manifest["schema"] == SCHEMA else None
        intact = pool is None or pool.content_hash == manifest["content_hash"]
    except FileNotFoundError:
        missing = next((name for name in _FILES if not (folder / name).exists()), "a file")
        raise BadInput(f"{folder} holds no pool ({missing} is missing); record one") from None
    except _DAMAGE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"pool {folder} is damaged ({first}); delete it and record again") from None
    if pool is None:
        raise BadInput(
            f"pool {folder} has schema {manifest['schema']}, this version reads {SCHEMA}; "
            "record it again"
        )
    if not intact:
        raise BadInput(f"pool {folder} does not match its content hash; delete it and record again")
    return pool


def _check_sums(folder: Path, manifest: dict[str, Any]) -> None:
    """Take the checksums out of `manifest`, and refuse files that they do not fit."""
    sums = manifest.pop(_SUMS, None)
    if sums is None:
        return
    for name in _FILES:
        held = _canonical(manifest) if name == "manifest.json" else (folder / name).read_bytes()
        if _sum(held) != sums[name]:
            raise BadInput(f"{name} does not match its checksum")


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    """The manifest but for its checksums, in bytes that do not depend on how it was written."""
    held = {key: value for key, value in manifest.items() if key != _SUMS}
    return json.dumps(held, sort_keys=True).encode()


def _sum(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()


def _read(folder: Path, manifest: dict[str, Any]) -> ReplyPool:
    replies = pl.read_parquet(folder / "replies.parquet")
    requests = pl.read_parquet(folder / "requests.parquet")
    B, M, n = manifest["shape"]
    arrays = {name: replies[f"pool_{name}"].to_numpy().reshape(B, M) for name in _PER_REPLY}
    arrays |= {
        name: np.array(replies[f"pool_{name}"].to_list()).reshape(B, M, n) for name in _PER_AD
    }
    extras = {
        name: np.array(replies[f"extra_{name}"].to_list()).reshape(shape)
        for name, shape in manifest.get("extras", {}).items()
    }
    has_replies, has_requests = manifest["tables"]
    return ReplyPool.from_arrays(
        **arrays,
        ads=np.array(requests["pool_ads"].to_list(), dtype=np.int64).reshape(B, n),
        num_advertisers=manifest["num_advertisers"],
        extras=extras,
        replies=_without_arrays(replies) if has_replies else None,
        requests=_without_arrays(requests) if has_requests else None,
        manifest=manifest,
    )


def _holds(folder: Path, content_hash: str) -> bool:
    try:
        return load_pool(folder).content_hash == content_hash
    except BadInput:
        return False


def _refuse_what_is_no_pool(folder: Path) -> None:
    try:
        foreign = set(os.listdir(folder)).difference(_FILES)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise BadInput(f"{folder} is not a folder; name another for the pool") from None
    if foreign:
        raise BadInput(
            f"{folder} holds {min(foreign)}, which is no part of a pool; name another folder"
        )


def _swap(new: Path, folder: Path, content_hash: str) -> None:
    """Put `new` in the place of `folder`, unless that holds the same pool by now.

    `folder` is whole at any time that it is there, also while others do the same; processes that
    save the same pool never take it away from each other.
    """
    trash = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for attempt in itertools.count():
            try:
                new.rename(folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if _holds(folder, content_hash):  # another process was faster
                return
            with contextlib.suppress(FileNotFoundError):  # another process moved it away
                folder.rename(trash / str(attempt))
    finally:
        shutil.rmtree(trash, ignore_errors=True)


def _lists(name: str, rows: np.ndarray) -> pl.Series:
    inner = {"f": pl.Float64, "b": pl.Boolean, "i": pl.Int64}[rows.dtype.kind]
    return pl.Series(name, rows.tolist(), dtype=pl.List(inner))


def _without_arrays(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(pl.exclude("^(pool|extra)_.*$"))

"""A pool on disk: two Parquet tables and a manifest, and nothing that is ever executed.

`replies.parquet` has a row per reply, with the arrays of the pool as columns; `requests.parquet` a
row per request. `manifest.json` names the content hash, which is checked on loading.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool

SCHEMA = 1
_PER_REPLY = ("log_ref", "log_gen", "quality", "malformed")
_PER_AD = ("ctr", "exposure")


def save_pool(pool: ReplyPool, folder: str | Path) -> Path:
    """Write `pool` into `folder` in one step: it is there whole, or not at all.

    A folder that is already there is replaced only after the new one is complete.
    """
    folder = Path(folder)
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
    manifest = {
        **pool.manifest,
        "schema": SCHEMA,
        "shape": [B, M, n],
        "num_advertisers": pool.num_advertisers,
        "content_hash": pool.content_hash,
        "tables": [pool.replies is not None, pool.requests is not None],
    }
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        replies.with_columns(columns).write_parquet(scratch / "replies.parquet")
        requests.with_columns(_lists("pool_ads", pool.ads)).write_parquet(
            scratch / "requests.parquet"
        )
        text = json.dumps(manifest, indent=2, sort_keys=True)
        (scratch / "manifest.json").write_text(text + "\n", encoding="utf-8")
        os.chmod(scratch, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        if not (folder / "manifest.json").exists():
            raise
    return folder


def load_pool(folder: str | Path) -> ReplyPool:
    """Read a pool that `save_pool` wrote.

    Raises:
        BadInput: no pool there, another schema, or content that does not match its hash.
    """
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        replies = pl.read_parquet(folder / "replies.parquet")
        requests = pl.read_parquet(folder / "requests.parquet")
        if manifest["schema"] != SCHEMA:
            raise BadInput(
                f"pool {folder} has schema {manifest['schema']}, this version reads {SCHEMA}; "
                "record it again"
            )
        B, M, n = manifest["shape"]
        arrays = {name: replies[f"pool_{name}"].to_numpy().reshape(B, M) for name in _PER_REPLY}
        arrays |= {
            name: np.array(replies[f"pool_{name}"].to_list()).reshape(B, M, n) for name in _PER_AD
        }
        ads = np.array(requests["pool_ads"].to_list(), dtype=np.int64).reshape(B, n)
        has_replies, has_requests = manifest["tables"]
    except FileNotFoundError as error:
        raise BadInput(
            f"{folder} holds no pool ({Path(error.filename).name} is missing); record one"
        ) from None
    except (OSError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        if isinstance(error, BadInput):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"pool {folder} is damaged ({first}); delete it and record again") from None
    pool = ReplyPool.from_arrays(
        **arrays,
        ads=ads,
        num_advertisers=manifest["num_advertisers"],
        replies=_without_arrays(replies) if has_replies else None,
        requests=_without_arrays(requests) if has_requests else None,
        manifest=manifest,
    )
    if pool.content_hash != manifest["content_hash"]:
        raise BadInput(f"pool {folder} does not match its content hash; delete it and record again")
    return pool


def _lists(name: str, rows: np.ndarray) -> pl.Series:
    inner = {"f": pl.Float64, "b": pl.Boolean, "i": pl.Int64}[rows.dtype.kind]
    return pl.Series(name, rows.tolist(), dtype=pl.List(inner))


def _without_arrays(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(pl.exclude("^pool_.*$"))

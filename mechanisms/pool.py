"""ReplyPool: candidate replies and everything a mechanism may know about them.

An LLM answer costs a million times more than an auction, so replies are written once and traded on
for ever. A pool holds, for each of B requests, M candidate replies and n candidate ads. Mechanisms
read arrays only; the texts and how they came about ride along in tables (`mechanisms.recording`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from mechanisms.errors import BadInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Derived = TypeVar("Derived")

# Arrays with an axis of requests, which a taken pool gathers when it is asked for them.
_GATHERED = ("ctr", "log_ref", "log_gen", "quality", "exposure", "malformed")
# How much `derived` remembers: what ten mechanisms need, each of two or three arrays.
_MOST_DERIVED = 32


@dataclass(frozen=True, eq=False)
class ReplyPool:
    """Recorded candidate replies of B requests: M replies and n candidate ads each.

    A pool that `take` made holds no arrays but `ads`: it knows its `origin` and the `index` of its
    requests there, and gathers an array when it is first asked for it.

    Attributes:
        ctr: (B, M, n) probability that the user clicks ad i given reply j; 0 where not exposed.
        log_ref: (B, M) log-probability of the reply under the reference policy, in nats.
        log_gen: (B, M) log-probability under what generated it (a mixture for a mixed design).
        quality: (B, M) user satisfaction with the reply, in [0, 1]; its unit is welfare per reply.
        ads: (B, n) index of each candidate ad's advertiser, in 0..N-1.
        exposure: (B, M, n) the ad is shown in the reply.
        malformed: (B, M) ad mentions that break the format or name no candidate ad.
        num_advertisers: N.
        extras: further arrays (B, M, ...) by name, which some mechanisms read and others need not
            know of: `log_ratios` (B, M, n), `log π_i(y)/π_ref(y)` of the LLM prompted on behalf of
            advertiser i; see `ReplyPool.extra` for what to do where one is missing.
        replies: optional table, a row per (request, reply), with `text` and its measurements.
        requests: optional table, a row per request.
        manifest: how the pool came about (model, seed, conditions, ...).
    """

    ctr: Floats
    log_ref: Floats
    log_gen: Floats
    quality: Floats
    ads: Ints
    exposure: Bools
    malformed: Floats
    num_advertisers: int
    extras: Mapping[str, Floats] = field(default_factory=dict)
    replies: pl.DataFrame | None = None
    requests: pl.DataFrame | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls,
        ctr: ArrayLike,
        log_ref: ArrayLike | None = None,
        log_gen: ArrayLike | None = None,
        quality: ArrayLike | None = None,
        ads: ArrayLike | None = None,
        *,
        exposure: ArrayLike | None = None,
        malformed: ArrayLike | None = None,
        num_advertisers: int | None = None,
        extras: Mapping[str, ArrayLike] | None = None,
        replies: pl.DataFrame | None = None,
        requests: pl.DataFrame | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> ReplyPool:
        """Build a pool from arrays; anything but `ctr` has a default.

        Args:
            ctr: (B, M, n) click probabilities in [0, 1].
            log_ref: (B, M), default 0: with `log_gen` also 0, replies weigh the same.
            log_gen: (B, M), default 0.
            quality: (B, M), default 0.
            ads: (B, n) advertiser of each candidate ad, default 0..n-1 in every request.
            exposure: (B, M, n), default `ctr > 0`.
            malformed: (B, M), default 0.
            num_advertisers: N, default the largest index in `ads` plus one.
            extras: arrays (B, M, ...) by name, finite.
            replies: table of B*M rows, request-major.
            requests: table of B rows.
            manifest: provenance, kept as it is.

        Raises:
            BadInput: wrong shapes, NaN or infinite entries, probabilities outside [0, 1], clicks on
                ads that are not exposed, no replies (M = 0) or no requests (B = 0).

        One request, three replies, two ads:

        >>> pool = ReplyPool.from_arrays([[[0.0, 0.0], [0.3, 0.0], [0.0, 0.2]]])
        >>> pool.shape, pool.effective_sample_size
        ((1, 3, 2), array([3.]))
        """
        ctr = _array("ctr", ctr)
        if ctr.ndim != 3:
            raise BadInput(f"ctr has shape {ctr.shape}; give (requests B, replies M, ads n)")
        B, M, n = ctr.shape
        if B == 0:
            raise BadInput("the pool has no requests (B = 0); record at least one")
        if M == 0:
            raise BadInput("the pool has no candidate replies (M = 0); record at least one")
        if ctr.size and (ctr.min() < 0 or ctr.max() > 1):
            raise BadInput(f"ctr must lie in [0, 1]; found {ctr.min():g} to {ctr.max():g}")
        shape = (B, M)
        log_ref = _array("log_ref", log_ref, shape)
        log_gen = _array("log_gen", log_gen, shape)
        shown = ctr > 0 if exposure is None else np.asarray(exposure, dtype=bool)
        if shown.shape != ctr.shape:
            raise BadInput(f"exposure has shape {shown.shape}; give {ctr.shape} like ctr")
        if (ctr[~shown] > 0).any():
            raise BadInput("ctr is positive for an ad that is not exposed; set it to 0 there")
        ads = np.tile(np.arange(n), (B, 1)) if ads is None else np.asarray(ads)
        if ads.shape != (B, n) or (ads.size and not np.issubdtype(ads.dtype, np.integer)):
            raise BadInput(f"ads must be integers of shape {(B, n)}; got {ads.dtype} {ads.shape}")
        ads = ads.astype(np.int64)
        N = int(ads.max(initial=-1)) + 1 if num_advertisers is None else num_advertisers
        if ads.size and (ads.min() < 0 or ads.max() >= N):
            raise BadInput(f"ads must lie in 0..{N - 1}; found {ads.min()} to {ads.max()}")
        if n > 1 and (np.diff(np.sort(ads, axis=1), axis=1) == 0).any():
            raise BadInput("a request lists the same advertiser twice in ads; list each once")
        for name, table, rows in (("replies", replies, B * M), ("requests", requests, B)):
            if table is not None and table.height != rows:
                raise BadInput(f"table {name} has {table.height} rows; the arrays ask for {rows}")
        further = {name: _array(name, array) for name, array in (extras or {}).items()}
        for name, array in further.items():
            if array.shape[:2] != shape:
                raise BadInput(f"{name} has shape {array.shape}; give (B, M, ...) = {shape} + ...")
        return cls(
            ctr=ctr,
            log_ref=log_ref,
            log_gen=log_gen,
            quality=_array("quality", quality, shape),
            ads=ads,
            exposure=shown,
            malformed=_array("malformed", malformed, shape),
            num_advertisers=N,
            extras=further,
            replies=replies,
            requests=requests,
            manifest=dict(manifest or {}),
        )

    @classmethod
    def synthetic(
        cls,
        requests: int,
        replies: int,
        ads: int,
        rng: np.random.Generator,
        *,
        advertisers: int | None = None,
        mention_rate: float = 0.5,
    ) -> ReplyPool:
        """Draw a parametric pool without an LLM, for theory tests and for scale.

        Each request draws `ads` of the `advertisers`; a reply shows 0, 1 or 2 of them (one with
        probability `mention_rate`, a second with `mention_rate / 4`). Click probabilities are
        relevance (Beta(2, 5) per request and ad) times reply noise, less a tenth per further ad;
        replies are drawn from the reference (weights 1). Quality falls with ads. Labelled
        `source: synthetic` in the manifest.
        """
        B, M, n = requests, replies, ads
        N = n if advertisers is None else advertisers
        if not 0 <= mention_rate <= 1:
            raise BadInput(f"mention_rate must lie in [0, 1]; got {mention_rate}")
        if n > N:
            raise BadInput(f"{n} ads a request from {N} advertisers; have ads <= advertisers")
        chosen = np.argsort(rng.random((B, N)), axis=1)[:, :n]
        order = np.argsort(rng.random((B, M, n)), axis=2)
        first = rng.random((B, M)) < mention_rate
        count = first.astype(int) + (first & (rng.random((B, M)) < mention_rate / 4))
        exposure = np.argsort(order, axis=2) < count[:, :, None]
        relevance = rng.beta(2, 5, (B, 1, n))
        noise = rng.uniform(0.7, 1.3, (B, M, n))
        crowding = 1 - 0.1 * np.maximum(exposure.sum(2, keepdims=True) - 1, 0)
        ctr = np.where(exposure, np.clip(relevance * noise * crowding, 1e-6, 1), 0.0)
        quality = np.clip(rng.uniform(0.5, 0.8, (B, M)) - 0.1 * exposure.sum(2), 0, 1)
        return cls.from_arrays(
            ctr,
            quality=quality,
            ads=chosen,
            exposure=exposure,
            num_advertisers=N,
            manifest={"source": "synthetic", "mention_rate": mention_rate},
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(requests B, replies M, ads n)."""
        _, M, n = self.origin.ctr.shape
        return len(self.ads), M, n

    @property
    def origin(self) -> ReplyPool:
        """The pool whose requests these are: itself, unless `take` made it."""
        return self.__dict__.get("_origin", self)

    @property
    def index(self) -> Ints | None:
        """(B,) which requests of `origin` these are; None for all of them, in order."""
        return self.__dict__.get("_index")

    @property
    def rows(self) -> Ints:
        """(B,) where these requests are in `origin`."""
        return np.arange(len(self.ads)) if self.index is None else self.index

    @property
    def weighted(self) -> bool:
        """Whether importance weights are claimed; not for replies written under bids they read."""
        design = self.manifest.get("design") or {}
        return design.get("generation") != "auction"

    @cached_property
    def log_weights(self) -> Floats:
        """(B, M) log importance weights `log π_ref − log π_gen`."""
        if self.index is not None:
            return self.origin.log_weights[self.index]
        return self.log_ref - self.log_gen

    @cached_property
    def effective_sample_size(self) -> Floats:
        """(B,) `(Σ w)² / Σ w²` of the importance weights, between 1 and M."""
        if self.index is not None:
            return self.origin.effective_sample_size[self.index]
        return effective_sample_size(np.exp(self.log_weights - self.log_weights.max(1)[:, None]))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of everything a mechanism may read, and of the texts."""
        digest = hashlib.sha256()
        names = ("ctr", "log_ref", "log_gen", "quality", "ads", "exposure", "malformed")
        arrays = {name: getattr(self, name) for name in names}
        for name, array in (*arrays.items(), *sorted(self.extras.items())):
            array = np.ascontiguousarray(array)
            digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
            digest.update(array.tobytes())
        if self.replies is not None and "text" in self.replies.columns:
            for text in self.replies["text"]:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    def take(self, indices: ArrayLike) -> ReplyPool:
        """The pool of the requests at `indices` (B',), repeats allowed, without the tables.

        Nothing but `ads` is copied before it is asked for, and what mechanisms compute of single
        requests (`derived`) is shared with the origin: batches cost no more than their auctions.
        """
        k = np.asarray(indices, dtype=np.int64)
        ads = self.ads[k]  # which refuses an index that is out of range
        if k.size and k.min() < 0:
            k = np.where(k < 0, k + len(self.ads), k)
        index = k if self.index is None else self.index[k]
        taken = object.__new__(ReplyPool)
        taken.__dict__.update(
            _origin=self.origin,
            _index=index,
            ads=ads,
            num_advertisers=self.num_advertisers,
            extras=_GatheredExtras(self.origin.extras, index),
            manifest=self.manifest,
        )
        return taken

    def __getattr__(self, name: str) -> Any:
        """Gather an array of a taken pool, at first use."""
        if name not in _GATHERED or "_origin" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        array = getattr(self.origin, name)[self.index]
        self.__dict__[name] = array
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {name: held for name, held in self.__dict__.items() if name != "_derived"}

    def derived(self, key: Hashable, compute: Callable[[ReplyPool], Derived]) -> Derived:
        """What `compute` makes of the origin, by `key`, kept with the origin for who asks next.

        For what depends on each request alone; whoever asks picks the requests at `index`. What was
        asked for longest ago is forgotten, so that a sweep of mechanisms does not fill the memory.
        """
        kept = self.origin.__dict__.setdefault("_derived", {})
        found = kept.pop(key) if key in kept else compute(self.origin)
        kept[key] = found  # dicts are in the order of insertion
        while len(kept) > _MOST_DERIVED:
            del kept[next(iter(kept))]
        return found

    def extra(self, name: str, needed_by: str, mend: str) -> Floats:
        """The extra array `name`.

        Raises:
            BadInput: the pool has none; the message says who needs it and how to `mend` that.
        """
        if name not in self.extras:
            raise BadInput(f"{needed_by} needs {name}, which these replies lack; {mend}")
        return self.extras[name]

    def bids_by_request(self, bids: ArrayLike) -> Floats:
        """(B, n) bids from `bids` (N,) by advertiser or (B, n) by request.

        Raises:
            BadInput: another shape, or a bid that is negative, NaN or infinite.
        """
        bids = np.asarray(bids, dtype=np.float64)
        if bids.size and not (np.isfinite(bids).all() and bids.min() >= 0):
            where = np.argwhere(~(np.isfinite(bids) & (bids >= 0)))[0]
            raise BadInput(f"bid {bids[tuple(where)]} at {tuple(map(int, where))}; bids are >= 0")
        B, _, n = self.shape
        if bids.shape == (self.num_advertisers,):
            return bids[self.ads]
        if bids.shape == (B, n):
            return bids
        raise BadInput(
            f"bids have shape {bids.shape}; give ({self.num_advertisers},) by advertiser "
            f"or {(B, n)} by request"
        )

    def by_advertiser(self, amounts: Floats) -> Floats:
        """(..., N) sums over requests of `amounts` (B, n) or (B, n, k): then (N, k)."""
        flat = self.ads.ravel()
        tail = amounts.shape[2:]
        total = np.zeros((self.num_advertisers, *tail))
        np.add.at(total, flat, amounts.reshape(flat.size, *tail))
        return total


class _GatheredExtras(Mapping[str, Floats]):
    """The extra arrays of a taken pool, each gathered when it is first asked for."""

    def __init__(self, source: Mapping[str, Floats], index: Ints) -> None:
        self._source, self._index = source, index
        self._gathered: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._gathered:
            self._gathered[name] = self._source[name][self._index]
        return self._gathered[name]

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def effective_sample_size(weights: Floats) -> Floats:
    """(...) `(Σ w)² / Σ w²` of weights (..., M), between 1 and M; 0 where all are 0."""
    squares = np.maximum((weights**2).sum(axis=-1), np.finfo(np.float64).tiny)
    return weights.sum(axis=-1) ** 2 / squares


def _array(name: str, given: ArrayLike | None, shape: tuple[int, ...] | None = None) -> Floats:
    if given is None:
        return np.zeros(shape)
    array = np.array(given, dtype=np.float64)
    if shape is not None and array.shape != shape:
        raise BadInput(f"{name} has shape {array.shape}; give {shape}")
    if not np.isfinite(array).all():
        raise BadInput(f"{name} has NaN or infinite entries; every entry must be finite")
    return array

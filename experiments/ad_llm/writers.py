"""Who writes replies under given bids, and who reads them.

Writers differ (an LLM as it is, one with an adapter, another prompt); readers do not: one reference
LLM says how natural a reply is, and one model of users, with norms fixed beforehand, who clicks.
Replies are kept like recorded pools, under a key of all that they depend on, so that an evaluation
that was interrupted goes on with the next writer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl

from agents.users import BehaviouralUsers
from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.llm.engines import make_engine
from mechanisms.llm.weights import cache_dir, identity
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.pool import ReplyPool
from mechanisms.recording import Design, Request, load_pool, record, save_pool

RECIPE = 1
"""Raise when the same key would be written or read differently."""


class Engines:
    """The reference LLM, and one Ad-LLM at a time: a large one fills the memory.

    Args:
        model: of the reference.
        dtype: of all.
        engine: what runs them, see `mechanisms.llm.engines`; it must take adapters.
        reference: gives the reference LLM's engine, if somebody has one; default it is opened here.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        dtype: str = "bf16",
        engine: str = "transformers",
        reference: Callable[[], Engine] | None = None,
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.engine = engine
        self._open = reference or (lambda: make_engine(engine, model=model, dtype=dtype))
        self._reference: Engine | None = None
        self._last: tuple[list[str], Engine] | None = None

    def reference(self) -> Engine:
        """The reference LLM."""
        if self._reference is None:
            self._reference = self._open()
        return self._reference

    def of(self, ad_llm: AdLLM) -> Engine:
        """The engine of an Ad-LLM; the one before it is let go."""
        if ad_llm.adapter is None and ad_llm.model == self.model:
            return self.reference()
        weights = ad_llm.weights  # not its folder: it may have been trained again since
        if self._last is None or self._last[0] != weights:
            self._last = None
            opened = make_engine(
                self.engine, model=ad_llm.model, dtype=self.dtype, adapter=ad_llm.adapter
            )
            self._last = weights, opened
        return self._last[1]

    def told(self, model: str) -> tuple[str, ...]:
        """What tells an LLM on this engine from others."""
        return (self.engine, self.dtype, str(identity(model)))


@dataclass(frozen=True, eq=False)
class Writer:
    """An LLM that reads bids and writes the reply.

    Attributes:
        name: of its row.
        ad_llm: how it is asked, when its replies end, at which temperature it is sampled.
        open: gives the engine that writes, when there is anything to write.
        identity: what tells its weights from others'; empty for one that still changes, whose
            replies are not kept.
    """

    name: str
    ad_llm: AdLLM
    open: Callable[[], Engine]
    identity: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, ad_llm: AdLLM, engines: Engines) -> Writer:
        """The Ad-LLM on one of `engines`."""
        told = (*engines.told(ad_llm.model), *ad_llm.identity)
        return cls(name, ad_llm, lambda: engines.of(ad_llm), told)

    def prompt(self, request: Request) -> str:
        """What it is asked under the request's bids."""
        style = self.ad_llm.style
        return style.message(request.query, request.user, request.ads, request.bids or ())


@dataclass(frozen=True, eq=False)
class Readers:
    """The reference LLM and the users, the same for all writers.

    Attributes:
        users: judge; their norms are given, so that no writer is judged by itself.
        open: gives the engine of the reference LLM.
        temperature: at which the reference LLM is asked for log-probabilities.
        num_advertisers: N, behind the ads of all requests.
        identity: what tells the reference LLM from others.
        folder: where replies are kept; None for the cache of pools.
    """

    users: BehaviouralUsers
    open: Callable[[], Engine]
    temperature: float
    num_advertisers: int
    identity: tuple[str, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.users.norms is None:
            raise BadInput(
                "users without norms would judge every writer by its own replies; give those of a "
                "recorded pool (market.environment.norms_of)"
            )

    @classmethod
    def of(
        cls, users: BehaviouralUsers, engines: Engines, temperature: float, num_advertisers: int
    ) -> Readers:
        """With the reference LLM of `engines`."""
        told = engines.told(engines.model)
        return cls(users, engines.reference, temperature, num_advertisers, told)

    def replies(
        self,
        writer: Writer,
        asked: Sequence[Request],
        seed: int,
        keys: Sequence[int] | None = None,
    ) -> ReplyPool:
        """One reply to each request under its bids, (P, 1, n), written now or earlier.

        Its table has the columns `written`, the tokens that the LLM wrote, and `read`, those of its
        prompt.

        Args:
            writer: writes.
            asked: P requests with bids.
            seed: of the replies.
            keys: (P,) random streams, default 0..P-1; requests with equal keys share theirs.
        """
        keys = list(range(len(asked))) if keys is None else [int(key) for key in keys]
        folder = self._kept(writer, asked, seed, keys)
        if folder is not None and (folder / "manifest.json").exists():
            return load_pool(folder)
        design = Design(
            replies=1, generation="auction", ad_llm=writer.ad_llm, temperature=self.temperature
        )
        engine = writer.open()
        pool = record(
            asked,
            self.open(),
            self.users,
            design,
            seed=seed,
            num_advertisers=self.num_advertisers,
            keys=keys,
            writer=engine,
        )
        read = [len(engine.chat_tokens(writer.prompt(request))) for request in asked]
        table = pool.replies.with_columns(
            pl.col("tokens").alias("written"), pl.Series("read", read)
        )
        pool = replace(pool, replies=table)
        return pool if folder is None else load_pool(save_pool(pool, folder))

    def _kept(
        self, writer: Writer, asked: Sequence[Request], seed: int, keys: Sequence[int]
    ) -> Path | None:
        """The folder of these replies; None for a writer that still changes."""
        if not (writer.identity and self.identity):
            return None
        users = self.users
        key = {
            "recipe": RECIPE,
            "writer": writer.identity,
            "rules": asdict(writer.ad_llm.rules),
            "sampled at": writer.ad_llm.temperature,
            "prompts": [writer.prompt(request) for request in asked],
            "ads": [[[ad.id, ad.title, ad.text] for ad in request.ads] for request in asked],
            "asking": [[r.query, r.user, list(map(int, r.advertisers))] for r in asked],
            "readers": [*self.identity, self.temperature, self.num_advertisers],
            "users": [asdict(part) for part in (users.clicks, users.satisfaction, users.norms)],
            "encoder": users.encoder.model,
            "seed": seed,
            "keys": list(keys),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return (self.folder or cache_dir() / "pools") / f"ad-llm-{digest[:16]}"

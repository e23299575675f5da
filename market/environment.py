"""From a scenario to requests and candidate replies: what is drawn once and met by every run.

A recorded pool is kept under a key of everything it depends on, so a scenario is recorded once per
machine; recording needs the LLM, everything after it does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.users import BehaviouralUsers, Norms
from market.asking import asked_of, enough, written_for
from market.audience import audience, audience_key, played
from market.audience import norms_of as norms_of  # of pools, which others look for here
from market.catalog import Ad, Catalog
from market.retrieval import retrieve
from market.scenario import Scenario
from market.sizes import check_replies_fit
from mechanisms.base import Mechanism
from mechanisms.errors import at
from mechanisms.iamfm.short import with_short
from mechanisms.insertion import PHRASES
from mechanisms.llm.base import Engine
from mechanisms.llm.encoder import TextEncoder
from mechanisms.llm.engines import make_engine
from mechanisms.llm.journal import Journaled
from mechanisms.llm.streams import derived_seed
from mechanisms.llm.weights import cache_dir, identity
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import auction_prompt
from mechanisms.llm_auction.surface import MANIFEST as RESPONSE
from mechanisms.llm_auction.surface import response_of
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Design, Request, Users, describe, load_pool, record, save_pool
from mechanisms.recording.conditions import ADVERTISER_PROMPT, CONTEXT_PROMPT, REFERENCE_PROMPT
from mechanisms.recording.record import with_manifest

RECIPE = 9
"""Raise when the same key would be recorded differently, so that old pools are not reused."""
SYNTHETIC = 3  # purpose of the scenario's random stream
_NOBODY = Ad("Ad-0", "Title", "Text", "", "")
"""Stands for any ad where a key holds how an Ad-LLM is asked."""


def make_pool(
    scenario: Scenario,
    say: Callable[[str], None] = lambda _: None,
    writing: Mapping[str, Any] | None = None,
    salt: int = 0,
    norms: Norms | None = None,
    engine: LazyEngine | None = None,
    shared: ReplyPool | None = None,
) -> ReplyPool:
    """The scenario's candidate replies: drawn, from the cache, or recorded and kept.

    Args:
        scenario: what is needed.
        say: told in a line what is going on, since recording takes minutes.
        writing: how replies are to be written, where not as the scenario's `replies` says.
        salt: recordings with different salts are independent.
        norms: by which users judge; default those of `shared`, or of the replies themselves.
        engine: to record with; default one is opened if there is anything to record.
        shared: the scenario's own recording, with which users compare these replies.

    Raises:
        BadInput: more replies than memory holds, or what catalog, cache or LLM are short of.
    """
    check_replies_fit(scenario)
    if scenario.replies.source == "synthetic":
        return ReplyPool.synthetic(
            scenario.requests.queries,
            scenario.replies.per_request,
            scenario.requests.ads,
            scenario.stream(SYNTHETIC),
            advertisers=scenario.num_advertisers,
        )
    if writing:
        scenario = written_by(scenario, writing)
    engine = engine or LazyEngine(scenario)
    requests, users = make_requests(scenario, engine)
    users = audience(scenario, users, shared, norms)
    folder = pool_folder(scenario, requests, users, salt)
    if (folder / "manifest.json").exists():
        say(f"candidate replies: reusing {folder}")
        return load_pool(folder)
    with contextlib.ExitStack() as stack:

        def kept(opened: Engine | None, name: str) -> Journaled | None:
            if opened is None:
                return None
            path = folder.with_name(f".{folder.name}.{name}")
            return stack.enter_context(Journaled(opened, path, wait=say))

        journals = kept(engine.open(), "journal"), kept(engine.writer(scenario), "writer.journal")
        if not (folder / "manifest.json").exists():  # which another process may have recorded
            judges = played(scenario, users, journals[0])
            pool = record_pool(scenario, requests, judges, say, journals[0], salt, journals[1])
            save_pool(pool, folder)
        # Read back, so that a first run sees exactly what later runs will.
        pool = load_pool(folder)
        for journal in filter(None, journals):
            journal.delete()
    return pool


def pools_of(
    scenario: Scenario,
    mechanisms: Sequence[Mechanism],
    say: Callable[[str], None] = lambda _: None,
    engine: LazyEngine | None = None,
) -> list[ReplyPool]:
    """The pool that each mechanism trades on: the scenario's, or one written in its own way.

    All are judged as the scenario's are: users do not change with the mechanism. Those that want
    short replies (`Mechanism.short_replies`) have them beside.

    Raises:
        BadInput: an Ad-LLM that cannot be had, before anything is recorded.
    """
    engine = engine or LazyEngine(scenario)
    for mechanism in mechanisms:
        _check_writer(written_by(scenario, mechanism.writing), engine)
    shared = make_pool(scenario, say, engine=engine)
    pools: list[ReplyPool] = []
    short: dict[ReplyPool, ReplyPool] = {}
    for mechanism in mechanisms:
        way = mechanism.writing
        pool = shared
        if written_by(scenario, way).replies != scenario.replies:
            pool = make_pool(scenario, say, way, engine=engine, shared=shared)
        if mechanism.short_replies:
            if pool not in short:
                say(f"candidate replies: cutting them short, for {mechanism.name}")
                short[pool] = cut_short(scenario, pool, shared, engine)
            pool = short[pool]
        pools.append(pool)
    return pools


def cut_short(
    scenario: Scenario, pool: ReplyPool, shared: ReplyPool, engine: LazyEngine
) -> ReplyPool:
    """The pool with its replies cut short beside them, judged by the users of `shared`."""
    requests, users = make_requests(scenario, engine)
    users = audience(scenario, users, shared)
    if scenario.users.kind == "user-llm":
        users = played(scenario, users, engine.open())
    return with_short(pool, requests, users)


def _check_writer(scenario: Scenario, engine: LazyEngine) -> None:
    """Refuse an Ad-LLM that is not there, or that cannot be told of the scenario's ads."""
    if scenario.replies.source == "synthetic" or scenario.replies.ad_llm is None:
        return
    style = AdLLM.load(scenario.replies.ad_llm).style
    for request in make_requests(scenario, engine)[0]:
        style.message(request.query, request.user, request.ads, [1.0] * len(request.ads))


def written_by(scenario: Scenario, writing: Mapping[str, Any]) -> Scenario:
    """The scenario with replies written in another way; without what that way does not have.

    Args:
        scenario: as it is.
        writing: what is different, by the names of its `replies` (`Mechanism.writing`).
    """
    changes = dict(writing)
    if changes.get("generation") in ("auction", "token"):
        changes |= {"context_probe": 0, "log_ratios": False, "inline_rate": 0.0}
    # Not validated again: the mechanism of the scenario need not be one that trades on them.
    return scenario.model_copy(update={"replies": scenario.replies.model_copy(update=changes)})


def record_pool(
    scenario: Scenario,
    requests: Sequence[Request],
    users: Users,
    say: Callable[[str], None],
    engine: Engine | None = None,
    salt: int = 0,
    writer: Engine | None = None,
) -> ReplyPool:
    """Have the scenario's LLM write the replies, and probe context-aware generation beside.

    A trained Ad-LLM's `writer` writes in its place; its response to bids is estimated beside.
    """
    engine = engine or LazyEngine(scenario).open()
    spec, N = scenario.replies, scenario.num_advertisers
    say(
        f"candidate replies: {spec.ad_llm or spec.model} writes {spec.per_request} to each of "
        f"{len(requests)} requests by {spec.generation} (once; kept for later runs)"
    )
    seed = recording_seed(scenario, salt)
    pool = record(requests, engine, users, spec.design, seed=seed, num_advertisers=N, writer=writer)
    if spec.ad_llm is not None:
        say("candidate replies: fitting the response surface")
        pool = with_manifest(pool, **{RESPONSE: response_of(pool)})
    if not spec.context_probe:
        return pool
    probed = requests[: spec.context_probe]
    design = replace(spec.design, replies=min(spec.per_request, 16), generation="context")
    tried = record(probed, engine, users, design, seed=seed, num_advertisers=N)
    probe = {"requests": len(probed), "replies": design.replies, **describe(tried)}
    return with_manifest(pool, context_probe=probe)


class LazyEngine:
    """The engines that a scenario names, each opened when it is first needed, and once."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.engine: Engine | None = None
        self.writers: dict[tuple[str, ...], Engine] = {}

    def open(self) -> Engine:
        """The engine, with its LLM loaded."""
        if self.engine is None:
            spec = self.scenario.replies
            self.engine = make_engine(
                spec.engine, model=spec.model, dtype=spec.dtype, server=spec.server
            )
        return self.engine

    def writer(self, scenario: Scenario) -> Engine | None:
        """The engine of the Ad-LLM that writes the replies of `scenario`; None if none does."""
        spec = scenario.replies
        if spec.ad_llm is None:
            return None
        ad_llm = AdLLM.load(spec.ad_llm)
        if ad_llm.adapter is None and ad_llm.model == spec.model:
            return self.open()
        weights = tuple(ad_llm.weights)  # not its name: it may have been trained again since
        if weights not in self.writers:
            self.writers[weights] = make_engine(
                spec.engine,
                model=ad_llm.model,
                dtype=spec.dtype,
                server=spec.server,
                adapter=ad_llm.adapter,
            )
        return self.writers[weights]


def recording_seed(scenario: Scenario, salt: int) -> int:
    """Seed of the LLM's streams; for salt 0 the environment's."""
    seed = scenario.environment_seed
    return derived_seed(seed, "recording", salt) if salt else seed


def pool_folder(
    scenario: Scenario,
    requests: Sequence[Request],
    users: BehaviouralUsers,
    salt: int = 0,
    design: Design | None = None,
) -> Path:
    """Where the scenario's pool is kept: a key of all that its content depends on."""
    spec = scenario.replies
    design = design or spec.design
    key = {
        "recipe": RECIPE,
        "model": identity(spec.model),
        "engine": spec.engine,
        "encoder": users.encoder.model,
        "users": [asdict(users.clicks), asdict(users.satisfaction)],
        "norms": asdict(users.norms) if users.norms else None,
        "prompts": [
            *(REFERENCE_PROMPT, CONTEXT_PROMPT, ADVERTISER_PROMPT, *PHRASES),
            auction_prompt("", "", (), ()),
        ],
        "dtype": spec.dtype,
        "design": design.described,
        "context_probe": spec.context_probe,
        "seed": recording_seed(scenario, salt),
        "advertisers": scenario.num_advertisers,
        "requests": [
            [r.query_id, r.query, r.user_id, r.user, list(map(int, r.advertisers))]
            + [[ad.id, ad.title, ad.text, ad.tagline] for ad in r.ads]
            for r in requests
        ],
    }
    # what most pools do without is left out, so that they keep the keys that they had
    key |= audience_key(scenario, users)
    if design.ad_llm is not None:
        key["asked"] = design.ad_llm.style.message("", "", [_NOBODY], [1.0])
    if design.generation == "auction":
        key["reading"] = "loose ids are malformed"
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "pools" / digest[:16]


def make_requests(
    scenario: Scenario, engine: LazyEngine | None = None
) -> tuple[list[Request], BehaviouralUsers]:
    """The scenario's requests, and the users who make them.

    Queries and users are drawn, or the User-LLM asks; advertiser i stands behind the i-th ad taking
    part; a request's candidate ads are those most similar to its query (MiniLM cosine).

    Args:
        scenario: what is needed.
        engine: of the LLM that asks, if one does; default one is opened if it has not yet asked.

    Raises:
        BadInput: fewer ads, queries or users in the catalog than the scenario asks for.
    """
    catalog = load_catalog(scenario)
    encoder = TextEncoder()
    if scenario.requests.source == "generated":
        asking = written_for(catalog, scenario, encoder, (engine or LazyEngine(scenario)).open)
    else:
        asking = asked_of(catalog, scenario)
    asked = encoder.embed([query.text for query, _ in asking])
    copies = encoder.embed([f"{ad.title}. {ad.text}" for ad in catalog.ads])
    taking_part = _choose_ads(asked @ copies.T, scenario.num_advertisers)
    ads = [catalog.ads[i] for i in taking_part]
    candidates = retrieve(asked, copies[taking_part], scenario.requests.ads)
    requests = [
        Request(
            query_id=query.id,
            query=query.text,
            user_id=user.id,
            user=user.description,
            ads=[ads[i] for i in row],
            advertisers=[int(i) for i in row],
        )
        for (query, user), row in zip(asking, candidates, strict=True)
    ]
    return requests, BehaviouralUsers(encoder)


def titles(pool: ReplyPool) -> list[str]:
    """(N) ad titles by advertiser, from the pool's request table; "Ad i" where it has none."""
    names = [f"Ad {i}" for i in range(pool.num_advertisers)]
    if pool.requests is not None and "ad_titles" in pool.requests.columns:
        for row, found in zip(pool.ads, pool.requests["ad_titles"], strict=True):
            for i, title in zip(row, found, strict=True):
                names[i] = title
    return names


def load_catalog(scenario: Scenario) -> Catalog:
    """The scenario's catalog, restricted to its categories."""
    with at("catalog.source"):
        catalog = Catalog.load(scenario.catalog.source)
    if scenario.catalog.categories is not None:
        with at("catalog.categories"):
            catalog = catalog.select(categories=scenario.catalog.categories)
    enough("advertisers", scenario.num_advertisers, "ads", catalog.ads)
    return catalog


def _choose_ads(similarity: Floats, count: int) -> list[int]:
    """`count` of the ads: queries take turns to add the most similar ad that is not yet in.

    Args:
        similarity: (queries, ads).
        count: at most the number of ads.

    Returns:
        Catalog indices in increasing order.
    """
    left = similarity.copy()
    chosen: list[int] = []
    while len(chosen) < count:
        row = left[len(chosen) % len(left)]
        best = int(row.argmax())
        chosen.append(best)
        left[:, best] = -np.inf
    return sorted(chosen)

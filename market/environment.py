"""From a scenario to requests and candidate replies: what is drawn once and met by every run.

A recorded pool is kept under a key of everything it depends on, so a scenario is recorded once per
machine; recording needs the LLM, everything after it does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from agents.users import BehaviouralUsers
from market.catalog import Ad, Catalog, Query
from market.retrieval import retrieve
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.insertion import PHRASES
from mechanisms.llm.encoder import TextEncoder
from mechanisms.llm.weights import cache_dir, identity
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Design, Request, describe, load_pool, record, save_pool
from mechanisms.recording.context import CONTEXT_PROMPT
from mechanisms.recording.design import REFERENCE_PROMPT
from mechanisms.recording.record import with_manifest

RECIPE = 7
"""Raise when the same key would be recorded differently, so that old pools are not reused."""
QUERIES, USERS, SYNTHETIC = 1, 2, 3


def make_pool(scenario: Scenario, say: Callable[[str], None] = lambda _: None) -> ReplyPool:
    """The scenario's candidate replies: drawn, from the cache, or recorded and kept.

    Args:
        scenario: what is needed.
        say: told in a line what is going on, since recording takes minutes.
    """
    if scenario.replies.source == "synthetic":
        return ReplyPool.synthetic(
            scenario.requests.queries,
            scenario.replies.per_request,
            scenario.requests.ads,
            scenario.stream(SYNTHETIC),
            advertisers=scenario.num_advertisers,
        )
    requests, users = make_requests(scenario)
    folder = pool_folder(scenario, requests, users)
    if (folder / "manifest.json").exists():
        say(f"candidate replies: reusing {folder}")
        return load_pool(folder)
    # Read back, so that a first run sees exactly what later runs will.
    return load_pool(save_pool(record_pool(scenario, requests, users, say), folder))


def record_pool(
    scenario: Scenario,
    requests: Sequence[Request],
    users: BehaviouralUsers,
    say: Callable[[str], None],
) -> ReplyPool:
    """Have the scenario's LLM write the replies, and probe context-aware generation beside."""
    from mechanisms.llm.transformers_engine import TransformersEngine

    spec = scenario.replies
    engine = TransformersEngine(spec.model, dtype=spec.dtype)
    say(
        f"candidate replies: {spec.model} writes {spec.per_request} to each of "
        f"{len(requests)} requests (once; kept for later runs)"
    )
    seed = scenario.environment_seed
    pool = record(
        requests, engine, users, spec.design, seed=seed, num_advertisers=scenario.num_advertisers
    )
    if not spec.context_probe:
        return pool
    probed = requests[: spec.context_probe]
    design = Design(
        replies=min(spec.per_request, 16),
        generation="context",
        mention_rate=spec.mention_rate,
        temperature=spec.temperature,
        rules=spec.design.rules,
    )
    tried = record(
        probed, engine, users, design, seed=seed, num_advertisers=scenario.num_advertisers
    )
    return with_manifest(
        pool, context_probe={"requests": len(probed), "replies": design.replies, **describe(tried)}
    )


def pool_folder(scenario: Scenario, requests: Sequence[Request], users: BehaviouralUsers) -> Path:
    """Where the scenario's pool is kept: a key of all that its content depends on."""
    spec = scenario.replies
    key = {
        "recipe": RECIPE,
        "model": identity(spec.model),
        "encoder": users.encoder.model,
        "users": [asdict(users.clicks), asdict(users.satisfaction)],
        "prompts": [REFERENCE_PROMPT, CONTEXT_PROMPT, *PHRASES],
        "dtype": spec.dtype,
        "design": asdict(spec.design),
        "context_probe": spec.context_probe,
        "seed": scenario.environment_seed,
        "advertisers": scenario.num_advertisers,
        "requests": [
            [r.query_id, r.query, r.user_id, r.user, list(map(int, r.advertisers))]
            + [[ad.id, ad.title, ad.text, ad.tagline] for ad in r.ads]
            for r in requests
        ],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "pools" / digest[:16]


def make_requests(scenario: Scenario) -> tuple[list[Request], BehaviouralUsers]:
    """The scenario's requests, and the users who make them.

    Queries and users are drawn; advertiser i stands behind the i-th ad taking part; a request's
    candidate ads are those most similar to its query (MiniLM cosine).

    Raises:
        BadInput: fewer ads, queries or users in the catalog than the scenario asks for.
    """
    catalog = load_catalog(scenario)
    encoder = TextEncoder()
    queries = _draw_queries(scenario, catalog.queries)
    asked = encoder.embed([query.text for query in queries])
    copies = encoder.embed([f"{ad.title}. {ad.text}" for ad in catalog.ads])
    taking_part = _choose_ads(asked @ copies.T, scenario.num_advertisers)
    ads = [catalog.ads[i] for i in taking_part]
    candidates = retrieve(asked, copies[taking_part], scenario.requests.ads)
    drawn = scenario.stream(USERS).integers(len(catalog.users), size=len(queries))
    requests = [
        Request(
            query_id=query.id,
            query=query.text,
            user_id=catalog.users[who].id,
            user=catalog.users[who].description,
            ads=[ads[i] for i in row],
            advertisers=[int(i) for i in row],
        )
        for query, who, row in zip(queries, drawn, candidates, strict=True)
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
    catalog = Catalog.load(scenario.catalog.source)
    if scenario.catalog.categories is not None:
        catalog = catalog.select(categories=scenario.catalog.categories)
    _enough("advertisers", scenario.num_advertisers, "ads", catalog.ads)
    return catalog


def _draw_queries(scenario: Scenario, queries: Sequence[Query]) -> list[Query]:
    """Queries in random order, those asked twice in the same words left out."""
    distinct = list({query.text: query for query in queries}.values())
    _enough("requests.queries", scenario.requests.queries, "different queries", distinct)
    order = scenario.stream(QUERIES).permutation(len(distinct))
    return [distinct[i] for i in sorted(order[: scenario.requests.queries])]


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


def _enough(key: str, wanted: int, what: str, there: Sequence[Ad | Query]) -> None:
    if wanted > len(there):
        raise BadInput(
            f"{key} asks for {wanted} but the catalog has {len(there)} {what}; "
            "ask for fewer, or choose more categories"
        )

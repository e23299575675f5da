"""Who asks what: queries of the catalog by users drawn, or questions that the User-LLM writes.

Questions that an LLM writes in the users' names (`agents.queries`) are kept, under a key of all
that they depend on: they are written once per machine, and whoever makes the requests meets them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from agents.queries import GeneratedQueries, GeneratedQuery, generated_queries, query_prompt
from market.catalog import Ad, Catalog, Query, UserProfile
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.llm.encoder import TextEncoder
from mechanisms.llm.streams import derived_seed
from mechanisms.llm.weights import cache_dir, identity

RECIPE = 1
"""Raise when the same key would be asked differently."""
QUERIES, USERS = 1, 2  # purposes of the scenario's random streams
_SPARE = 2  # questions wanted for each that is needed: not all are usable

Asked = list[tuple[Query, UserProfile]]


def asked_of(catalog: Catalog, scenario: Scenario) -> Asked:
    """Queries of the catalog in random order, those asked twice in the same words left out.

    Raises:
        BadInput: fewer queries in the catalog than the scenario asks for.
    """
    distinct = list({query.text: query for query in catalog.queries}.values())
    count = scenario.requests.queries
    enough("requests.queries", count, "different queries", distinct)
    order = scenario.stream(QUERIES).permutation(len(distinct))
    queries = [distinct[i] for i in sorted(order[:count])]
    drawn = scenario.stream(USERS).integers(len(catalog.users), size=count)
    return [(query, catalog.users[who]) for query, who in zip(queries, drawn, strict=True)]


def written_for(
    catalog: Catalog, scenario: Scenario, encoder: TextEncoder, open_: Callable[[], Engine]
) -> Asked:
    """Questions that the scenario's LLM writes in the name of users drawn, about topics drawn.

    About as many users as topics are drawn, so that neither is short. Topics are the categories as
    the catalog names them: they should be plain words.

    Args:
        catalog: its users ask, about the categories of its ads.
        scenario: how many are needed, and the LLM that writes.
        encoder: judges what is on topic.
        open_: gives the LLM's engine, when there is anything to write.

    Raises:
        BadInput: too few of the LLM's questions can be used.
    """
    count, rng = scenario.requests.queries, scenario.stream(QUERIES)
    categories = sorted({ad.category for ad in catalog.ads})
    wanted = _SPARE * count
    users = _some(rng.permutation(len(catalog.users)), math.isqrt(wanted - 1) + 1)
    topics = _some(rng.permutation(len(categories)), math.ceil(wanted / len(users)))
    each = math.ceil(wanted / (len(users) * len(topics)))
    found = _questions(
        scenario,
        [catalog.users[i] for i in users],
        [categories[i] for i in topics],
        each,
        encoder,
        open_,
    )
    if len(found.queries) < count:
        raise BadInput(
            f"requests.queries asks for {count}, but of {found.tries} questions that "
            f"{scenario.replies.model} wrote, {len(found.queries)} can be used; ask for fewer, "
            "choose a larger LLM, or set requests.source to catalog"
        )
    profiles = {user.id: user for user in catalog.users}
    chosen = sorted(rng.permutation(len(found.queries))[:count])
    return [
        (Query(asked.id, asked.text, asked.category), profiles[asked.user_id])
        for asked in (found.queries[i] for i in chosen)
    ]


def enough(key: str, wanted: int, what: str, there: Sequence[Ad | Query]) -> None:
    """Refuse a catalog that has fewer of something than key `key` of a scenario asks for."""
    if wanted > len(there):
        raise BadInput(
            f"{key} asks for {wanted} but the catalog has {len(there)} {what}; "
            "ask for fewer, or choose more categories"
        )


def _some(order: Sequence[int], count: int) -> list[int]:
    return sorted(int(i) for i in order[:count])


def _questions(
    scenario: Scenario,
    users: Sequence[UserProfile],
    topics: Sequence[str],
    per_user: int,
    encoder: TextEncoder,
    open_: Callable[[], Engine],
) -> GeneratedQueries:
    """What the LLM writes, now or earlier; read back, so that the first run sees what others do."""
    spec = scenario.replies
    seed = derived_seed(scenario.environment_seed, "questions")
    key = {
        "recipe": RECIPE,
        "model": [*identity(spec.model), spec.engine, spec.dtype],
        "prompt": query_prompt("", ""),
        "users": [[user.id, user.description] for user in users],
        "topics": list(topics),
        "per_user": per_user,
        "seed": seed,
        "temperature": spec.temperature,
        "encoder": encoder.model,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = cache_dir() / "questions" / f"{digest[:16]}.json"
    if not file.exists():
        found = generated_queries(
            open_(), users, topics, per_user, seed, temperature=spec.temperature, encoder=encoder
        )
        _keep(found, file)
    said = json.loads(file.read_text(encoding="utf-8"))
    queries = tuple(GeneratedQuery(**query) for query in said.pop("queries"))
    return GeneratedQueries(queries=queries, **said)


def _keep(found: GeneratedQueries, file: Path) -> None:
    """Write the file in one move, so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(asdict(found), indent=1, ensure_ascii=False)
    fresh.write_text(text + "\n", encoding="utf-8")
    os.replace(fresh, file)

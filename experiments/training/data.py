"""What an Ad-LLM is trained and evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agents.users import BehaviouralUsers, Norms
from market.catalog import Catalog, Query
from market.environment import LazyEngine, make_requests, norms_of, pool_folder, recording_seed
from market.retrieval import retrieve
from market.scenario import Scenario
from market.training import TrainingSpec
from mechanisms.errors import BadInput
from mechanisms.llm.encoder import TextEncoder
from mechanisms.llm.journal import Journaled
from mechanisms.policies import Rules
from mechanisms.pool import ReplyPool
from mechanisms.recording import Design, Request, load_pool, record, save_pool

SPLIT = 31  # purpose of the scenario's random stream
GUIDED_RATE, MENTION_RATE, POOL_TEMPERATURE = 0.7, 0.35, 0.5
"""Of the recorded pool: two of three replies show an ad, and the rule's base policy shows one in
every third."""


@dataclass(frozen=True, eq=False)
class Split:
    """Requests to train on, and requests with other queries to evaluate on."""

    train: list[Request]
    held_out: list[Request]
    num_ads: int


def training_requests(scenario: Scenario) -> Split:
    """The requests of the scenario's training; see `market.training.TrainingSpec`.

    Raises:
        BadInput: nothing is left to train on, or users other than behavioural ones, by whom
            training is not judged.
    """
    if scenario.users.kind != "behavioural":
        raise BadInput(
            f"users is {scenario.users.kind}, but training and its evaluation know behavioural "
            "users alone; leave users out"
        )
    spec = scenario.training or TrainingSpec()
    catalog = Catalog.load(scenario.catalog.source)
    market, _ = make_requests(scenario)
    asked = {request.query for request in market}
    distinct = list({query.text: query for query in catalog.queries}.values())
    others = [query for query in distinct if query.text not in asked]
    if len(others) <= spec.held_out:
        raise BadInput(
            f"training.held_out is {spec.held_out}, but the catalog has {len(others)} queries that "
            "the market does not ask; hold fewer out, or have the market ask fewer"
        )
    rng = scenario.stream(SPLIT)
    order = rng.permutation(len(others))
    held = {others[i].text for i in order[: spec.held_out]} | asked
    who = {query.text: int(rng.integers(len(catalog.users))) for query in distinct}
    train = [query for query in distinct if query.text not in held]
    held_out = [query for query in distinct if query.text in held]
    return Split(
        _requests(scenario, catalog, train, who),
        _requests(scenario, catalog, held_out, who),
        len(catalog.ads),
    )


def _requests(
    scenario: Scenario, catalog: Catalog, queries: Sequence[Query], who: dict[str, int]
) -> list[Request]:
    encoder = TextEncoder()
    copies = encoder.embed([f"{ad.title}. {ad.text}" for ad in catalog.ads])
    asked = encoder.embed([query.text for query in queries])
    requests = []
    for query, row in zip(queries, retrieve(asked, copies, scenario.requests.ads), strict=True):
        user = catalog.users[who[query.text]]
        requests.append(
            Request(
                query_id=query.id,
                query=query.text,
                user_id=user.id,
                user=user.description,
                ads=[catalog.ads[i] for i in row],
                advertisers=[int(i) for i in row],
            )
        )
    return requests


def pool_design(spec: TrainingSpec, replies: int | None = None) -> Design:
    """How the pool is written that demonstrations and distillation draw from."""
    return Design(
        replies=replies or spec.pool_replies,
        guided_rate=GUIDED_RATE,
        mention_rate=MENTION_RATE,
        temperature=POOL_TEMPERATURE,
        # A mention is a sentence of its own, behind these.
        rules=Rules(
            sentences=spec.sentences - 1, mentions=spec.max_ads, max_tokens=spec.pool_tokens
        ),
    )


def training_pool(
    scenario: Scenario,
    requests: Sequence[Request],
    num_ads: int,
    say: Callable[[str], None] = lambda _: None,
    replies: int | None = None,
    norms: Norms | None = None,
    engine: LazyEngine | None = None,
) -> ReplyPool:
    """Guided replies to `requests`, recorded once per machine.

    Args:
        scenario: its LLM writes.
        requests: those of one side of the split.
        num_ads: N, ads of the catalog.
        say: told what is going on.
        replies: M, default `training.pool_replies`.
        norms: by which users judge; default those of the replies themselves.
        engine: to record with; default one is opened if there is anything to record.
    """
    spec = scenario.training or TrainingSpec()
    users = BehaviouralUsers(TextEncoder(), norms=norms)
    design = pool_design(spec, replies)
    folder = pool_folder(scenario, requests, users, design=design)
    if not (folder / "manifest.json").exists():
        say(f"training pool: {len(requests)} requests, {design.replies} replies each (once)")
        opened = (engine or LazyEngine(scenario)).open()
        with Journaled(opened, folder.with_name(f".{folder.name}.journal")) as journal:
            pool = record(
                requests, journal, users, design,
                seed=recording_seed(scenario, 0), num_advertisers=num_ads,
            )  # fmt: skip
            save_pool(pool, folder)
            journal.delete()
    return load_pool(folder)


def users_by(pool: ReplyPool) -> BehaviouralUsers:
    """Users who judge by the norms of `pool`."""
    return replace(BehaviouralUsers(TextEncoder()), norms=norms_of(pool))

"""Sample replies: what users read under a mechanism, with what every ad in the auction paid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import TypeAdapter, ValidationError

from mechanisms.base import Mechanism, Outcome
from mechanisms.errors import BadInput
from mechanisms.mentions import MENTION
from mechanisms.pool import Floats, ReplyPool


@dataclass(frozen=True)
class Segment:
    """A piece of a reply: plain text, or an ad mention.

    Attributes:
        text: the text as it is; the title for a mention.
        ad_id: id of the ad mentioned; None for plain text.
    """

    text: str
    ad_id: str | None = None


@dataclass(frozen=True)
class ConsideredAd:
    """An ad that took part in the auction of a request.

    Attributes:
        advertiser: its index.
        id, title: as in the catalog.
        bid: per click.
        shown: whether the reply shows it.
        click_probability: given the reply; 0 where it is not shown.
        charge: realised, for this request.
        clicked: whether the user clicked it.
    """

    advertiser: int
    id: str
    title: str
    bid: float
    shown: bool
    click_probability: float
    charge: float
    clicked: bool


@dataclass(frozen=True)
class SampleReply:
    """One request, the reply that the mechanism drew for it, and the ads it considered.

    Attributes:
        request: its index in the pool.
        query: what the user asked.
        user: who asked.
        segments: the reply, in order.
        ads: the candidate ads, shown ones first.
        probability: of this reply under the mechanism's allocation.
        condition: the prompt that the reply was generated under; empty if not recorded.
    """

    request: int
    query: str
    user: str
    segments: tuple[Segment, ...]
    ads: tuple[ConsideredAd, ...]
    probability: float
    condition: str = ""

    def ad(self, ad_id: str) -> ConsideredAd | None:
        """The candidate ad of that id; None if there is none."""
        return next((ad for ad in self.ads if ad.id == ad_id), None)


def sample_replies(
    pool: ReplyPool,
    mechanism: Mechanism,
    bids: ArrayLike,
    rng: np.random.Generator,
    count: int = 6,
    *,
    mention: re.Pattern[str] = MENTION,
) -> list[SampleReply]:
    """Run `mechanism` on requests drawn without replacement, and return what a reader wants to see.

    Args:
        pool: with tables `requests` and `replies`; without them there is nothing to read and the
            list is empty.
        mechanism: any.
        bids: (N,) by advertiser.
        rng: draws the requests, the replies and the clicks.
        count: samples, at most one per request of the pool.
        mention: matches an ad mention, with groups `title` and `id`.
    """
    if pool.requests is None or pool.replies is None:
        return []
    B = pool.shape[0]
    drawn = rng.choice(B, size=min(count, B), replace=False)
    some = pool.take(drawn)
    outcome = mechanism.run(some, bids, rng)
    by_request = some.bids_by_request(bids)
    return [
        served_reply(pool, some, outcome, by_request, k, mention=mention) for k in range(len(drawn))
    ]


def served_reply(
    pool: ReplyPool,
    some: ReplyPool,
    outcome: Outcome,
    bids: Floats,
    k: int,
    *,
    mention: re.Pattern[str] = MENTION,
) -> SampleReply:
    """What one auction of a batch came to; without tables in the pool, without words.

    Args:
        pool: with the tables, if there are any.
        some: the batch, of `pool.take`.
        outcome: of the mechanism on it.
        bids: (B, n) by request of the batch.
        k: which request of the batch.
        mention: matches an ad mention, with groups `title` and `id`.
    """
    b, j = int(some.rows[k]), int(outcome.chosen[k])
    who = some.ads[k].tolist()
    asked: Mapping[str, Any] = {
        "query": f"Request {b}",
        "user": "",
        "ad_ids": [f"Ad-{i}" for i in who],
        "ad_titles": [f"Ad {i}" for i in who],
    }
    reply: Mapping[str, Any] = {"text": ""}
    if pool.requests is not None and pool.replies is not None:
        asked = pool.requests.row(b, named=True)
        reply = pool.replies.row(b * pool.shape[1] + j, named=True)
    ads = [
        ConsideredAd(
            advertiser=advertiser,
            id=asked["ad_ids"][i],
            title=asked["ad_titles"][i],
            bid=float(bids[k, i]),
            shown=bool(some.exposure[k, j, i]),
            click_probability=float(some.ctr[k, j, i]),
            charge=float(outcome.charges[k, i]),
            clicked=bool(outcome.clicks[k, i]),
        )
        for i, advertiser in enumerate(who)
    ]
    return SampleReply(
        request=b,
        query=asked["query"],
        user=asked["user"],
        segments=split_mentions(reply["text"], mention),
        ads=tuple(sorted(ads, key=lambda ad: (not ad.shown, -ad.bid))),
        probability=float(outcome.probabilities[k, j]),
        condition=reply.get("condition") or "",
    )


def split_mentions(text: str, mention: re.Pattern[str] = MENTION) -> tuple[Segment, ...]:
    """`text` cut at its ad mentions; putting the pieces together again loses only their marks."""
    segments, end = [], 0
    for found in mention.finditer(text):
        if found.start() > end:
            segments.append(Segment(text[end : found.start()]))
        segments.append(Segment(found["title"], found["id"]))
        end = found.end()
    if end < len(text):
        segments.append(Segment(text[end:]))
    return tuple(segments)


def save_samples(samples: Mapping[str, Sequence[SampleReply]], path: Path) -> None:
    """Write sample replies by mechanism as JSON."""
    path.write_bytes(_BY_MECHANISM.dump_json(samples, indent=1) + b"\n")


def load_samples(path: Path) -> dict[str, list[SampleReply]]:
    """What `save_samples` wrote.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    try:
        return _BY_MECHANISM.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise BadInput(f"{path}: holds no sample replies; it is damaged, remove it") from None


_BY_MECHANISM = TypeAdapter(dict[str, list[SampleReply]])

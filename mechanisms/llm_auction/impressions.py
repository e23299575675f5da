"""Impressions: an ad shown to a user in a reply, and whether it was clicked.

What a pCTR model learns from, and what it predicts; filled from recorded pools and from replies
just written alike. The reply stands without its titles (`prose`): what is said of an ad counts, not
how often its name is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.errors import BadInput
from mechanisms.mentions import MENTION, disarm
from mechanisms.pool import Bools, Floats, Ints, ReplyPool
from mechanisms.recording.design import Features, Request

Texts = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Impressions:
    """Shown ads, a row each; several rows where one was shown in several rounds.

    Attributes:
        at: (rows, 3) request, reply and candidate ad: where the row is in arrays (B, M, n).
        query: (rows,) what the user asked.
        user: (rows,) id of the user.
        profile: (rows,) description of the user.
        ad: (rows,) id of the ad.
        copy: (rows,) title and text of the ad.
        reply: (rows,) the reply without markers and titles.
        shown: (rows,) ads shown in the reply, this one included.
        place: (rows,) sentences before the mention.
        clicks: (rows,) 1 where clicked, 0 where not; NaN where not known.
        ctr: (rows,) probability by which a simulated user clicked; NaN where not known.
    """

    at: Ints
    query: Texts
    user: Texts
    profile: Texts
    ad: Texts
    copy: Texts
    reply: Texts
    shown: Floats
    place: Floats
    clicks: Floats
    ctr: Floats

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"impressions have columns of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.at)

    @classmethod
    def of(cls, requests: Sequence[Request], features: Features) -> Impressions:
        """The shown ads of measured replies, clicks not known."""
        users = [(request.user_id, request.user) for request in requests]
        queries = [request.query for request in requests]
        ads = [
            [(ad.id, ad.title, f"{ad.title}. {ad.text}") for ad in request.ads]
            for request in requests
        ]
        return _of(queries, users, ads, features.text, features.exposure, features.place)

    @classmethod
    def of_pool(cls, pool: ReplyPool, copies: Mapping[str, str] | None = None) -> Impressions:
        """The shown ads of a recorded pool, clicks not known.

        Args:
            pool: with its tables; those of a taken pool stayed behind.
            copies: title and text of ads by id; a pool knows their titles only, which stand in.

        Raises:
            BadInput: a pool without texts.
        """
        if pool.replies is None or pool.requests is None or "text" not in pool.replies.columns:
            raise BadInput("these replies have no texts to learn from; record them from an LLM")
        copies = copies or {}
        table = pool.requests
        ads = [
            [(id_, title, copies.get(id_, title)) for id_, title in zip(*row, strict=True)]
            for row in zip(table["ad_ids"], table["ad_titles"], strict=True)
        ]
        place = np.array(pool.replies["place"].to_list()).reshape(pool.shape)
        users = list(zip(table["user_id"], table["user"], strict=True))
        texts = pool.replies["text"].to_list()
        return _of(table["query"].to_list(), users, ads, texts, pool.exposure, place)

    @classmethod
    def stacked(cls, parts: Sequence[Impressions]) -> Impressions:
        """All rows of `parts`, their requests numbered on, so that `at` keeps them apart."""
        if not parts:
            raise BadInput("there are no impressions to put together; give at least one part")
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
        }
        ends = np.cumsum([0, *(int(part.at[:, 0].max(initial=-1)) + 1 for part in parts)])
        columns["at"][:, 0] += np.repeat(ends[:-1], [len(part) for part in parts])
        return cls(**columns)

    def take(self, rows: ArrayLike) -> Impressions:
        """The rows at `rows`, indices or a mask."""
        rows = np.asarray(rows)
        rows = rows if rows.dtype == bool else rows.astype(np.int64)
        return Impressions(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def drawn(self, ctr: ArrayLike, rng: np.random.Generator, rounds: int = 1) -> Impressions:
        """Every impression shown `rounds` times, with clicks drawn from `ctr` (B, M, n)."""
        ctr = self.values(ctr)
        if not ((ctr >= 0) & (ctr <= 1)).all():
            raise BadInput("clicks are drawn from probabilities in [0, 1]; some are not")
        clicks = (rng.random((rounds, len(self))) < ctr).astype(np.float64)
        rows = self.take(np.tile(np.arange(len(self)), rounds))
        return replace(rows, clicks=clicks.ravel(), ctr=np.tile(ctr, rounds))

    def values(self, array: ArrayLike) -> Floats:
        """(rows,) entries of `array` (B, M, n) that belong to the rows."""
        return np.asarray(array, dtype=np.float64)[tuple(self.at.T)]

    def scattered(self, values: Floats, shape: tuple[int, int, int]) -> Floats:
        """(B, M, n) `values` (rows,) in their places, 0 where nothing is shown."""
        array = np.zeros(shape)
        array[tuple(self.at.T)] = values
        return array

    def split(self, share: float, seed: int) -> tuple[Impressions, Impressions]:
        """Rows of a random `share` of the requests held out: (the others, these).

        By request, since the replies to one are alike.

        Raises:
            BadInput: nothing would be left on either side.
        """
        requests = np.unique(self.at[:, 0])
        count = round(share * len(requests))
        if not 0 < count < len(requests):
            raise BadInput(
                f"of {len(requests)} requests a share of {share:g} is to be held out; "
                "have some on both sides"
            )
        held = np.random.default_rng([seed, 3]).permutation(requests)[:count]
        out = np.isin(self.at[:, 0], held)
        return self.take(~out), self.take(out)


def examples_of(
    pool: ReplyPool,
    rng: np.random.Generator,
    rounds: int = 1,
    copies: Mapping[str, str] | None = None,
) -> Impressions:
    """Impressions of a pool with clicks drawn from its `ctr`; see `Impressions.of_pool`."""
    return Impressions.of_pool(pool, copies).drawn(pool.ctr, rng, rounds)


def prose(text: str, titles: Iterable[str]) -> str:
    """The words of `text` without mentions, markers and the `titles` of ads, on one line.

    What stands alone and is no word goes too: however often a title is said in a row, and with
    whatever between, the same is left.
    """
    bare = disarm(MENTION.sub(" ", text))
    # Longer titles first, since one may begin another.
    named = sorted((title for title in titles if title), key=len, reverse=True)
    if named:
        anyone = "|".join(map(re.escape, named))
        bare = re.sub(rf"(?<!\w)(?:{anyone})(?!\w)", " ", bare, flags=re.IGNORECASE)
    return " ".join(word for word in bare.split() if any(map(str.isalnum, word)))


def _of(
    queries: Sequence[str],
    users: Sequence[tuple[str, str]],
    ads: Sequence[Sequence[tuple[str, str, str]]],
    texts: Sequence[str],
    exposure: Bools,
    place: Floats,
) -> Impressions:
    """Rows of the shown ads; `users` are id and profile, `ads` id, title and copy."""
    B, M, _ = exposure.shape
    if not (len(queries) == len(users) == len(ads) == B and len(texts) == B * M):
        raise BadInput(
            f"{len(queries)} requests and {len(texts)} texts do not fit exposure of shape "
            f"{exposure.shape}; give B requests and B * M texts"
        )
    at = np.argwhere(exposure).reshape(-1, 3)
    bare = {
        (b, j): prose(texts[b * M + j], [title for _, title, _ in ads[b]])
        for b, j in {(int(b), int(j)) for b, j, _ in at}
    }
    unknown = np.full(len(at), np.nan)
    return Impressions(
        at=at,
        query=_texts(queries[b] for b, _, _ in at),
        user=_texts(users[b][0] for b, _, _ in at),
        profile=_texts(users[b][1] for b, _, _ in at),
        ad=_texts(ads[b][i][0] for b, _, i in at),
        copy=_texts(ads[b][i][2] for b, _, i in at),
        reply=_texts(bare[int(b), int(j)] for b, j, _ in at),
        shown=exposure.sum(axis=2)[at[:, 0], at[:, 1]].astype(np.float64),
        place=np.asarray(place, dtype=np.float64)[tuple(at.T)],
        clicks=unknown,
        ctr=unknown,
    )


def _texts(given: Iterable[str]) -> Texts:
    rows = list(given)
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array

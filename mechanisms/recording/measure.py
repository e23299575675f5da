"""Measuring replies: what is shown, and where, is read off the text that the user reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from mechanisms.mentions import ends_sentence, parse, without_mentions
from mechanisms.pool import Floats
from mechanisms.recording.design import Features, Request, Written


def measure(requests: Sequence[Request], written: list[list[Written]]) -> Features:
    """Parse the texts: what is shown, and where, is read off what the user reads."""
    B, M, n = len(requests), len(written[0]), len(requests[0].ads)
    exposure = np.zeros((B, M, n), dtype=bool)
    nativeness, place = np.zeros((B, M, n)), np.zeros((B, M, n))
    sentences, malformed = np.zeros((B, M)), np.zeros((B, M))
    complete = np.zeros((B, M), dtype=bool)
    for b, request in enumerate(requests):
        for j, reply in enumerate(written[b]):
            parsed = parse(reply.text, request.ads)
            malformed[b, j] = parsed.malformed + reply.forged
            bare = without_mentions(reply.text)
            sentences[b, j] = max(count_sentences(bare), 1)
            complete[b, j] = ends_sentence(bare)
            for ad, (start, _) in zip(parsed.ads, parsed.spans, strict=True):
                exposure[b, j, ad] = True
                nativeness[b, j, ad] = reply.nativeness.get(ad, 0.0)
                place[b, j, ad] = count_sentences(without_mentions(reply.text[:start]))
    return Features(
        text=[reply.text for row in written for reply in row],
        exposure=exposure,
        nativeness=nativeness,
        place=place,
        sentences=sentences,
        fluency=np.array([[reply.fluency for reply in row] for row in written]),
        complete=complete,
        malformed=malformed,
    )


def count_sentences(text: str) -> int:
    """Sentences that end in `text`, by the rule by which replies are written."""
    stops = (match.end() for match in re.finditer(r"[.!?]+[\"')\]”’]*", text))
    return sum(ends_sentence(text[:stop]) for stop in stops)


def reply_table(written: list[list[Written]], features: Features) -> pl.DataFrame:
    """A row per reply, request-major."""
    flat = [reply for row in written for reply in row]
    M = len(written[0])
    return pl.DataFrame(
        {
            "request": np.repeat(np.arange(len(written)), M),
            "reply": np.tile(np.arange(M), len(written)),
            "condition": [reply.condition for reply in flat],
            "text": features.text,
            "tokens": [reply.tokens for reply in flat],
            "log_free": [reply.log_free for reply in flat],
            "events": pl.Series([list(reply.events) for reply in flat], dtype=pl.List(pl.Int64)),
            "sentences": features.sentences.ravel(),
            "fluency": features.fluency.ravel(),
            "complete": features.complete.ravel(),
            "nativeness": _rows(features.nativeness),
            "place": _rows(features.place),
        }
    )


def _rows(array: Floats) -> pl.Series:
    B, M, n = array.shape
    return pl.Series(array.reshape(B * M, n).tolist(), dtype=pl.List(pl.Float64))


def request_table(requests: Sequence[Request]) -> pl.DataFrame:
    """A row per request."""
    return pl.DataFrame(
        {
            "request": np.arange(len(requests)),
            "query_id": [request.query_id for request in requests],
            "query": [request.query for request in requests],
            "user_id": [request.user_id for request in requests],
            "user": [request.user for request in requests],
            "ad_ids": [[ad.id for ad in request.ads] for request in requests],
            "ad_titles": [[ad.title for ad in request.ads] for request in requests],
        },
        schema_overrides={"ad_ids": pl.List(pl.String), "ad_titles": pl.List(pl.String)},
    )

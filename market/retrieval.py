"""Retrieval: the n ads nearest to each query, by cosine of their embeddings."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from market.errors import BadInput


def retrieve(query_embeddings: ArrayLike, ad_embeddings: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return the indices (B, n) of the n ads most similar to each query, best first.

    query_embeddings (B, d), ad_embeddings (A, d). Ties go to the lower index; a zero vector has
    similarity 0 to everything.
    """
    queries, ads = _unit_rows("query", query_embeddings), _unit_rows("ad", ad_embeddings)
    if queries.shape[1] != ads.shape[1]:
        raise BadInput(
            f"query embeddings have {queries.shape[1]} columns and ad embeddings {ads.shape[1]}, "
            "in retrieve: make both with one encoder"
        )
    if not 1 <= n <= len(ads):
        raise BadInput(f"n is {n} with {len(ads)} ads, in retrieve: choose n from 1 to {len(ads)}")
    # Rounded, because a matrix product may sum equal rows in different orders: the last bit must
    # not break a tie, nor the answer to one query depend on the others in the batch.
    similarity = np.round(queries @ ads.T, 9)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :n].astype(np.int64)


def _unit_rows(name: str, embeddings: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise BadInput(
            f"{name} embeddings must be a finite matrix, in retrieve: got shape {rows.shape}; "
            "give one row of numbers each"
        )
    # Scaled by the largest entry first, so that squares neither overflow nor vanish.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = rows / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)

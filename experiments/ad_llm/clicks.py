"""What the click model of a training predicts of replies written after it (`PCTR`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mechanisms.llm_auction.impressions import examples_of
from mechanisms.llm_auction.pctr import PCTR, Embeddings, Encoder
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Request

VIEWERS = 10
"""Users who see each reply, and click or do not."""


class Predicted(NamedTuple):
    """Predictions and clicks, an impression and viewer each.

    Attributes:
        predicted: (rows,) click probabilities.
        clicks: (rows,) 1 where clicked, 0 where not.
    """

    predicted: Floats
    clicks: Floats


def predicted_clicks(
    folder: Path,
    pool: ReplyPool,
    requests: Sequence[Request],
    encoder: Encoder,
    seed: int = 0,
) -> Predicted | None:
    """A kept click model on the ads shown in `pool`; None where no reply shows any.

    Args:
        folder: of the click model.
        pool: replies with their tables and the users' own click probabilities.
        requests: whose ads they show.
        encoder: of the click model's texts.
        seed: of the clicks.

    Raises:
        BadInput: no click model in `folder`, or one of another encoder.
    """
    if not pool.exposure.any():
        return None
    copies = {ad.id: f"{ad.title}. {ad.text}" for request in requests for ad in request.ads}
    rng = np.random.default_rng([seed, 17])
    rows = examples_of(pool, rng, VIEWERS, copies)
    model = PCTR.load(folder, Embeddings(encoder))
    return Predicted(model.predict(rows), rows.clicks)

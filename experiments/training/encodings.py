"""How bids should stand in the prompt: the same distillation under each way, and what it came to.

Small LLMs hardly read numbers; which way they do read is a question to measurement. Each way starts
from the untrained LLM, meets the same requests, bids and replies, and takes as many steps.

They are measured on the held-out requests, on which the Ad-LLM that is made by the way chosen is
tried too. Nothing is trained on these, but the best of five ways there may owe a little to them:
read its curve in the study of LLM-Auction with that in mind. The page says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.ad_llm.curves import LEVELS, Sweep, first_before, shares
from experiments.ad_llm.writers import Engines, Writer
from experiments.training.data import training_pool, training_requests, users_by
from experiments.training.stages import train
from market.scenario import Scenario
from market.training import TrainingSpec
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.pool import ReplyPool
from mechanisms.recording import Request

WAYS = (("digits", False), ("ranks", False), ("embedding", False), ("tally", False),
        ("digits", True))  # fmt: skip
"""Code of a bid, and whether ads are listed by falling bid."""
SWEPT = 24
"""Held-out requests of the curves."""
FILE = "encodings.json"


def compare_encodings(
    scenario: Scenario,
    steps: int,
    seed: int,
    out: Path,
    say: Callable[[str], None] = lambda _: None,
    ways: Sequence[tuple[str, bool]] = WAYS,
) -> Path:
    """Distil under each way, measure choice shares over bids, and write `encodings.json`.

    Choice shares (`experiments.ad_llm.curves`) are those of the mention in a recorded reply: the
    same text for all ways.

    Returns:
        The file: a row per way with `bids`, `ordered`, `steps`, `seconds`, `loss` (mean of the last
        tenth of the steps, nats per token), `levels`, `shares` with `low` and `high`, `spearman`,
        `gain`, and `violation`.
    """
    spec = scenario.training or TrainingSpec()
    split = training_requests(scenario)
    trained_on = training_pool(scenario, split.train, split.num_ads, say)
    held = training_pool(
        scenario, split.held_out, split.num_ads, say, replies=20,
        norms=users_by(trained_on).norms,
    )  # fmt: skip
    rows = []
    for bids, ordered in ways:
        distil = spec.distill.model_copy(update={"steps": steps})
        changed = spec.model_copy(update={"bids": bids, "ordered": ordered, "distill": distil})
        folder = out / f"{bids}{'-ordered' if ordered else ''}"
        say(f"bids as {bids}{', ads by falling bid' if ordered else ''}: {steps} steps")
        trained = train(
            scenario.with_(training=changed.model_dump()), "distill", seed, folder, None, say
        )
        told = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        found = _curve(scenario, trained, split.held_out, held, seed)
        last = told["log"][-max(1, steps // 10) :]
        rows.append(
            {
                "bids": bids,
                "ordered": ordered,
                "steps": steps,
                "seconds": told["seconds"],
                "loss": sum(row["loss_per_token"] for row in last) / len(last),
                **found,
            }
        )
        (out / FILE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return out / FILE


def _curve(
    scenario: Scenario, trained: Path, requests: Sequence[Request], held: ReplyPool, seed: int
) -> dict[str, Any]:
    replies = scenario.replies
    engines = Engines(replies.model, replies.dtype, replies.engine)
    ad_llm = AdLLM.load(trained)
    writer = Writer.of(trained.parent.name, ad_llm, engines)
    swept = requests[:SWEPT]
    sweep = Sweep.of(swept, seed, 1, LEVELS)
    curve = shares(writer, sweep, _lead_ins(held, swept))
    band, rank, gain = curve.band(seed), curve.spearman(seed), curve.gain(seed)
    return {
        "levels": list(LEVELS),
        "shares": curve.mean.tolist(),
        "low": band.low.tolist(),
        "high": band.high.tolist(),
        "spearman": [rank.mean, rank.low, rank.high],
        "gain": [gain.mean, gain.low, gain.high],
        "violation": curve.violation,
        "requests": len(curve.answers),
    }


def _lead_ins(pool: ReplyPool, requests: Sequence[Request]) -> list[list[str | None]]:
    """(R, 1) text before the mention of the first recorded reply that has one."""
    M = pool.shape[1]
    texts = pool.replies["text"].to_list()
    return [
        [first_before(texts[b * M : (b + 1) * M], request)] for b, request in enumerate(requests)
    ]

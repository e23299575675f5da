"""`admarket engine-check`: do two engines give the same replies the same log-probabilities?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from experiments.bench_recording import Timed, some_requests
from mechanisms.errors import BadInput
from mechanisms.llm.engines import make_engine
from mechanisms.pool import Floats
from mechanisms.recording import Design, Features, Judgement, Request, record
from mechanisms.recording.conditions import prompt

TEMPERATURE = 0.7


def nobody(requests: list[Request], features: Features) -> Judgement:
    """Users who never click: log-probabilities are all that is looked at."""
    return Judgement(np.zeros(features.exposure.shape), np.zeros(features.exposure.shape[:2]))


def engine_check(
    name: str,
    model: str,
    dtype: str,
    server: str | None,
    requests: int,
    replies: int,
    say: Callable[[str], None],
) -> Iterator[str]:
    """Record the same requests through the embedded engine and another, and compare.

    First the replies that the embedded engine wrote are scored by the other. Then the other records
    by itself, and the embedded engine scores that.

    Args:
        name: of the other engine, `vllm` or `openai`.
        model: the LLM of both.
        dtype: of both; a server has its own.
        server: address, for `openai`.
        requests: of the bundled catalog.
        replies: per request.
        say: told in a line what is going on.
    """
    if name == "transformers":
        raise BadInput("the embedded engine is what others are compared with; give vllm or openai")
    asked = some_requests(requests)
    design = Design(replies=replies, temperature=TEMPERATURE)
    embedded = make_engine(model=model, dtype=dtype)
    other = make_engine(name, model=model, dtype=dtype, server=server)
    written = {}
    for label, engine in (("transformers", embedded), (name, other)):
        say(f"{label}: records {requests} requests x {replies} replies, {dtype}")
        timed = Timed(engine)
        pool = record(asked, timed, nobody, design, seed=0)
        samples = timed.generated[0][2]
        written[label] = (
            [[sample.tokens for sample in row] for row in samples],
            [[sample.log_probs for sample in row] for row in samples],
        )
        shown = pool.exposure.any(axis=2).mean()
        yield f"{label:<13} {pool.manifest['tokens']} tokens, ads in {100 * shown:.0f} % of replies"
    prompts = [prompt("reference", request) for request in asked]
    for label, scorer, scorer_label in (
        ("transformers", other, name),
        (name, embedded, "transformers"),
        ("transformers", embedded, "transformers"),
        (name, other, name),
    ):
        tokens, drawn = written[label]
        say(f"{scorer_label} scores what {label} wrote")
        scores = scorer.score(prompts, tokens, temperature=TEMPERATURE)
        yield _compared(f"written by {label}, scored by {scorer_label}", drawn, scores)


def _compared(label: str, drawn: list[list[Floats]], scores: list[list[Floats]]) -> str:
    """Differences by token and by reply, in nats."""
    differences = [
        np.asarray(score) - np.asarray(own)
        for row, others in zip(scores, drawn, strict=True)
        for score, own in zip(row, others, strict=True)
    ]
    by_token = np.concatenate(differences)
    by_reply = np.array([each.sum() for each in differences])
    error = by_reply.std(ddof=1) / np.sqrt(len(by_reply))
    return (
        f"{label}: per token sd {by_token.std():.2g}, largest {np.abs(by_token).max():.2g}; per "
        f"reply mean {by_reply.mean():+.2g} +- {error:.2g}, sd {by_reply.std():.2g}, largest "
        f"{np.abs(by_reply).max():.2g} nats ({len(by_reply)} replies)"
    )

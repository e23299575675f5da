"""Run in vLLM's own environment by `test_vllm.py`: what vLLM inside our process writes and scores.

python tests/mechanisms/vllm_pool.py MODEL DTYPE OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mechanisms.llm.engines import make_engine
from tests.mechanisms.llm_driver import Script

PROMPTS = (
    "How do I sleep better?",
    "Tea",
    "Running shoes should fit well. Walk around the shop in them. Do they feel right? " * 3,
    "",
)
INSERT = " One good option is Tea Pot,"
DRAW = {"max_new_tokens": 40, "seed": 3}


def packed(samples):
    return [
        [
            {
                "tokens": sample.tokens.tolist(),
                "log_probs": sample.log_probs.tolist(),
                "forced": sample.forced.tolist(),
                "ended": sample.ended,
            }
            for sample in row
        ]
        for row in samples
    ]


def main(model: str, dtype: str, out: str) -> None:
    """Everything that the test looks at, at several temperatures, in one run."""
    engine = make_engine("vllm", model=model, dtype=dtype)
    runs = []
    for temperature in (1.0, 0.7, 1.4):
        draw = DRAW | {"temperature": temperature}
        seen = {}
        samples = engine.generate(PROMPTS, 8, done=seen.update, **draw)
        assert [seen[p] for p in range(len(PROMPTS))] == samples
        part = engine.generate(PROMPTS[2:0:-1], 3, keys=[2, 1], **draw)
        rest = engine.generate(PROMPTS, 8, finished={p: seen[p] for p in (0, 1, 3)}, **draw)
        guided = engine.generate(PROMPTS, 8, guide=Script(engine.encode(INSERT)), **draw)
        # The first reply again: its text is in vLLM's cache, which must not matter.
        replies = [[s.tokens for s in (*row, row[0])] + [[]] for row in samples]
        scores = engine.score(PROMPTS, replies, temperature=temperature)
        runs.append(
            {
                "temperature": temperature,
                "samples": packed(samples),
                "part": packed(part),
                "rest": packed(rest),
                "guided": packed(guided),
                "scores": [[list(each) for each in row] for row in scores],
            }
        )
    Path(out).write_text(json.dumps(runs), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

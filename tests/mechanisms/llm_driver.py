"""The driver of `mechanisms.llm.continuation` on a tiny LLM that answers in chunks."""

from __future__ import annotations

from mechanisms.llm.base import END
from mechanisms.llm.continuation import CHUNK, Results, replies_to_write
from mechanisms.llm.transformers_engine import TransformersEngine


class Chunks:
    """Answers `Ask`s by an engine whose "prompts" are token ids; keeps all that it was asked."""

    def __init__(self, model: str, temperature: float, width: int = 4096) -> None:
        self.engine = TransformersEngine(model, dtype="fp32", device="cpu")
        self.engine.chat_tokens = lambda key: self.texts[key]
        self.temperature, self.width = temperature, width
        self.texts = {}
        self.asked = []

    def answer(self, asks):
        """[(tokens, log-probabilities)] of chunks, or [scores]."""
        self.asked += asks
        self.texts = {str(i): list(a.tokens[: a.start or None]) for i, a in enumerate(asks)}
        if not asks[0].max_tokens:
            replies = [[a.tokens[a.start :]] for a in asks]
            scored = self.engine.score(list(self.texts), replies, temperature=self.temperature)
            return [scores for (scores,) in scored]
        samples = self.engine.generate(
            list(self.texts),
            1,
            max_new_tokens=max(a.max_tokens for a in asks),
            temperature=self.temperature,
            seed=0,
            keys=[a.seed for a in asks],
        )
        return [self._cut(sample, ask) for (sample,), ask in zip(samples, asks, strict=True)]

    def _cut(self, sample, ask):
        end = min(len(sample.tokens), ask.max_tokens)
        for t in range(1, end):
            if any(stop in self.engine.decode(sample.tokens[t - 1 : t]) for stop in ask.stops):
                end = t
                break
        return sample.tokens[:end].tolist(), sample.log_probs[:end].tolist()

    def generate(self, prompts, n, *, max_new_tokens, seed, guide=None, keys=None, chunk=CHUNK):
        """Like an engine's, all replies side by side, `width` at a time."""
        results = Results([n] * len(prompts), {}, None)
        work = list(
            replies_to_write(
                results,
                lambda p: prompts[p],
                self.engine.end_token,
                max_new_tokens=max_new_tokens,
                seed=seed,
                guide=guide,
                keys=keys,
                chunk=chunk,
            )
        )
        for start in range(0, len(work), self.width):
            live = work[start : start + self.width]
            while live:
                asked = [(reply, reply.ask()) for reply in live]
                for reply, ask in asked:
                    if ask is None:
                        results.put(reply.prompt, reply.index, reply.sample())
                for drawn in (True, False):
                    some = [(r, a) for r, a in asked if a and bool(a.max_tokens) == drawn]
                    for (reply, _), got in zip(
                        some, self.answer([a for _, a in some]) if some else (), strict=True
                    ):
                        reply.take(*got) if drawn else reply.take_scores(got)
                live = [reply for reply, ask in asked if ask]
        return results.all()


class Script:
    """Writes `insert` after the `at`-th free token of a reply, and ends it after the `last`-th."""

    def __init__(self, insert, at=2, last=6):
        self.insert, self.at, self.last = list(insert), at, last
        self.seen = []
        self.counts = {}

    def step(self, prompt, sample, tokens):
        self.seen.append((prompt, sample, tuple(tokens)))
        self.counts[prompt, sample] = free = self.counts.get((prompt, sample), 0) + 1
        return self.insert if free == self.at else END if free == self.last else ()

"""Evaluations by asking the LLM: replies are written under a configuration, and users judge them.

Pair p of any configuration is a reply to the same query, written with the same random numbers: the
LLM's tokens are driven by the stream (seed, p), and so are the choices at its decisions. So two
configurations whose policies agree at all that happens in a pair have the same reply.

**Levels** are those of a recorded pool (`mechanisms.iamfm.short`). A `short` reply is the beginning
of the `full` one: ended behind its first decision, or where the LLM has written `short_tokens`. It
is judged as it stands, the ad's sentence being the mention alone. A level's `tokens` are the
engine's own limit.

Both ways of steering (`mechanisms.iamfm.configuration`) can be evaluated. Replies to a prompt that
names ads are scored once more under the reference prompt, since how fluent a reply is, is said by
the LLM that knows no ads; these tokens are read, not written, and are not counted.

Shapes: configurations k or S, pairs P, candidate ads n, advertisers N.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.checks import one_of, whole
from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import WAYS, Steering, check_configurations
from mechanisms.iamfm.evaluations import Level
from mechanisms.iamfm.recorded import Pairs
from mechanisms.iamfm.short import SHORT_TOKENS
from mechanisms.insertion import GuidedInsertion
from mechanisms.llm.base import END, Engine
from mechanisms.mentions import check_copy
from mechanisms.policies import InsertionPolicy, Rules
from mechanisms.pool import Floats, Ints
from mechanisms.recording.conditions import Condition, prompt
from mechanisms.recording.design import Design, Features, Request, Users, Written
from mechanisms.recording.measure import measure
from mechanisms.recording.writing import Drafted, read_reply


class BriefInsertion(GuidedInsertion):
    """Guided insertion that ends a reply behind what it has mentioned first."""

    def step(self, prompt: int, sample: int, tokens: Sequence[int]) -> Sequence[int] | str:
        """As `GuidedInsertion.step`; one token that the LLM writes behind the mention is unread."""
        if self.drafts[prompt, sample].mentions:
            return END
        return super().step(prompt, sample, tokens)


class Writer:
    """Writes replies by conditions of steering, at one level.

    Args:
        engine: writes.
        design: its rules and temperature; nothing else of it matters.
        way: of steering, `guided` or `prompted`.
        short: most tokens that the LLM writes, for the level `short`; None for `full`.
    """

    def __init__(self, engine: Engine, design: Design, way: str, short: int | None = None) -> None:
        self.engine = engine
        self.way = way
        self.temperature = design.temperature
        self.guide: type[GuidedInsertion] = GuidedInsertion
        self.rules = design.rules
        if short is not None:
            self.guide = BriefInsertion
            self.rules = brief(design.rules, short)

    def most_tokens(self, requests: Sequence[Request]) -> int:
        """No reply to one of the requests has more."""
        return self._guide(requests, [[]] * len(requests), 0, None).max_new_tokens

    def write(
        self,
        requests: Sequence[Request],
        conditions: Sequence[Condition],
        seed: int,
        keys: Sequence[int],
    ) -> list[Written]:
        """One reply to each request, by its condition and the random stream (seed, key).

        Equal keys give common random numbers. One call of the engine writes them all.
        """
        policies = [[condition.policy] for condition in conditions]
        guide = self._guide(requests, policies, seed, keys)
        samples = self.engine.generate(
            [prompt(c.prompt, r) for c, r in zip(conditions, requests, strict=True)],
            1,
            max_new_tokens=guide.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
            guide=guide,
            keys=keys,
        )
        drafts = [
            Drafted(condition.prompt, condition.policy.name, row[0], guide, (p, 0))
            for p, (condition, row) in enumerate(zip(conditions, samples, strict=True))
        ]
        return [
            read_reply(self.engine, draft, request.ads, log_probs, self.rules.decisions)
            for draft, request, log_probs in zip(
                drafts, requests, self._as_reference(drafts, requests), strict=True
            )
        ]

    def _guide(
        self,
        requests: Sequence[Request],
        policies: Sequence[Sequence[InsertionPolicy]],
        seed: int,
        keys: Sequence[int] | None,
    ) -> GuidedInsertion:
        ads = [request.ads for request in requests]
        own_words = self.way == "prompted"
        return self.guide(self.engine, ads, policies, self.rules, seed, keys, inline=own_words)

    def _as_reference(self, drafts: Sequence[Drafted], requests: Sequence[Request]) -> list[Floats]:
        """Token log-probabilities of each draft under the reference prompt."""
        found = [draft.sample.log_probs for draft in drafts]
        others = [p for p, draft in enumerate(drafts) if draft.kind != "reference"]
        if others:
            scores = self.engine.score(
                [prompt("reference", requests[p]) for p in others],
                [[drafts[p].sample.tokens] for p in others],
                temperature=self.temperature,
            )
            for p, (log_probs,) in zip(others, scores, strict=True):
                found[p] = log_probs
        return found


class LiveEvaluator:
    """An `Evaluator` on an engine; see the head of this module.

    The same calls give the same bytes. A sample depends on what else is asked for in its call no
    more than an engine's replies do on those that they share a batch with.

    Args:
        engine: writes and scores.
        requests: of which each pair draws one; all with the same number n of candidate ads.
        users: judge replies. Those who compare need norms of their own, or what is fluent would
            depend on what is evaluated together.
        configurations: (S, N) strengths to search among, by advertiser (`Request.advertisers`).
        steering: what strengths mean.
        way: of steering, `guided` or `prompted`.
        design: rules and temperature of the replies.
        short_tokens: most tokens that the LLM writes at level `short`.
        seed: of pairs and replies.

    Raises:
        BadInput: no requests, requests of different sizes, configurations that leave advertisers
            out, or users who compare replies with those at hand.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        users: Users,
        configurations: ArrayLike,
        steering: Steering | None = None,
        *,
        way: str = "guided",
        design: Design | None = None,
        short_tokens: int = SHORT_TOKENS,
        seed: int = 0,
    ) -> None:
        one_of("way of steering", way, WAYS)
        whole("short_tokens", short_tokens, 1)
        _check_requests(requests)
        if getattr(users, "norms", 0) is None:
            raise BadInput(
                "these users judge replies by those at hand, which differ from call to call; give "
                "them the norms of a recording"
            )
        self.steering = steering or Steering()
        self.configurations = check_configurations(
            configurations, self.steering.strongest, np.shape(configurations)[-1]
        )
        self._ads = np.array([request.advertisers for request in requests], dtype=np.int64)
        N = self.configurations.shape[1]
        if self._ads.size and self._ads.max() >= N:
            raise BadInput(
                f"requests name advertiser {self._ads.max()}, configurations have {N}; give each "
                "advertiser a strength"
            )
        self.requests, self.users, self.seed = requests, users, seed
        self._pairs = Pairs(seed, len(requests))
        design = design or Design()
        self._writers = [Writer(engine, design, way, limit) for limit in (short_tokens, None)]
        self.levels = [
            Level(name, float(writer.most_tokens(requests)), biased=name != "full")
            for name, writer in zip(("short", "full"), self._writers, strict=True)
        ]

    def reseeded(self, seed: int) -> LiveEvaluator:
        """The same evaluator with other pairs and random numbers."""
        other = copy.copy(self)
        other.seed = seed
        other._pairs = self._pairs._replace(seed=seed)
        return other

    def sample(self, which: Ints, level: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """See `mechanisms.iamfm.evaluations.Evaluator.sample`."""
        which = np.asarray(which, dtype=np.int64)
        chosen, _ = self._pairs.take(start, stop)
        asked = [self.requests[b] for b in chosen]
        strengths = self.configurations[which][:, self._ads[chosen]]  # (k, P, n)
        written = self.write(asked, strengths.swapaxes(0, 1), level, range(start, stop))
        judged = self.users(asked, measure(asked, written))
        outcomes = np.zeros((len(which), len(chosen), self.configurations.shape[1] + 1))
        ctr = judged.ctr.swapaxes(0, 1)
        # advertisers of a request are distinct, so each writes to a place of its own
        np.put_along_axis(outcomes, self._ads[chosen][None], ctr, axis=2)
        outcomes[..., -1] = judged.quality.T
        tokens = [[reply.tokens for reply in row] for row in written]
        return outcomes, np.array(tokens, dtype=np.float64).T

    def write(
        self, requests: Sequence[Request], strengths: Ints, level: int, keys: Sequence[int]
    ) -> list[list[Written]]:
        """(P) lists of k replies: to each request under k strengths of its ads.

        Args:
            requests: (P).
            strengths: (P, k, n) by candidate ad.
            level: at which.
            keys: (P,) of random streams; those of a request's replies are the same.
        """
        writer, k = self._writers[level], strengths.shape[1]
        conditions = [self.steering.condition(s, writer.way) for row in strengths for s in row]
        flat = writer.write(
            [request for request in requests for _ in range(k)],
            conditions,
            self.seed,
            [key for key in keys for _ in range(k)],
        )
        return [flat[p * k : (p + 1) * k] for p in range(len(requests))]

    def read(
        self, requests: Sequence[Request], strengths: Ints, level: int, keys: Sequence[int]
    ) -> Features:
        """What is measured of the replies that `write` returns, (P, k, n)."""
        return measure(requests, self.write(requests, strengths, level, keys))


def brief(rules: Rules, limit: int) -> Rules:
    """Rules by which a reply ends with its first sentence, or behind `limit` tokens of the LLM.

    A mention needs no room, since nothing is written about it.
    """
    return replace(rules, sentences=1, mentions=1, max_tokens=min(limit, rules.max_tokens), room=0)


def _check_requests(requests: Sequence[Request]) -> None:
    if not requests:
        raise BadInput("there are no requests to evaluate configurations on; give at least one")
    counts = {len(request.ads) for request in requests}
    if len(counts) > 1:
        raise BadInput(f"requests have {sorted(counts)} candidate ads; give each the same number")
    for request in requests:
        for ad in request.ads:
            check_copy(ad)

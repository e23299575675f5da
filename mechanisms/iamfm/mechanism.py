"""IAMFM in a market: a period's configuration by evaluations on a token budget, and VCG prices.

At the start of a period the platform reads the bids b, spends at most Λ tokens on evaluations of
sponsorship configurations (`mechanisms.iamfm.evaluations`), and then knows, as well as Λ allows,

    s*   = argmax_s W(s) = Σ_i b_i·E[ctr_i(s)] + μ·E[u(s)]        among S configurations,
    p_i  = W_{−i}(s*_{−i}) − W_{−i}(s*),  clamped to [0, b_i·E[ctr_i(s*)]],  W_{−i} = W − b_i·ctr_i.

Expectations are over requests and replies. Within the period replies come from s*, and a click on
ad i costs p_i / E[ctr_i(s*)] <= b_i, with the click rate that the platform believes in: what is
charged has p_i for a mean as far as that belief is right, and exceeds no bid. The S configurations
do not depend on the bids (all of them, or a design), so without estimation error this is VCG over a
fixed range, which is truthful however small the range.

**On recorded replies** evaluations are draws from a guided pool, reweighted to the configuration
(`mechanisms.iamfm.recorded`), and so are the replies of the period. With `tokens: null` nothing is
evaluated: the pool's own expectation of every configuration is taken, the limit of Λ → ∞.

**Other bids.** What else a bid might have led to is read off the period's evaluations: choice and
payments made anew on the outcomes that the platform believes (`exact.outcomes_along`), then clicks
under that configuration as they truly are on the pool, though it may never have been evaluated, and
at no tokens. So prices are the platform's own estimate, and clicks are not. On believed outcomes it
is VCG of fixed candidates, and truth is best by construction: what a bid does to the search and so
to its own price is not in it (`PeriodicMechanism.replanned` has it; `experiments.iamfm.other_bids`
compares the two).

From the abstract of arXiv 2604.06263 and the literature; see `docs/iamfm.md`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from mechanisms.base import Mechanism
from mechanisms.candidates import expectation
from mechanisms.checks import Parametric, non_negative, one_of, positive, whole
from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import Steering, design
from mechanisms.iamfm.counterfactual import HOW, settle
from mechanisms.iamfm.elimination import ConfidenceElimination, SuccessiveHalving
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget, weights_of
from mechanisms.iamfm.exact import Settlement, exact_vcg, outcomes_along
from mechanisms.iamfm.method import Method
from mechanisms.iamfm.recorded import RecordedEvaluator
from mechanisms.iamfm.reweighing import steered
from mechanisms.iamfm.surrogate import ModelBased
from mechanisms.periods import Alternatives, PeriodicMechanism, Plan
from mechanisms.pool import Floats, Ints, ReplyPool

_PLANS = 64  # kept with a pool: whoever asks for a plan asks for it again and again
_CONFIGURATIONS = 7  # purpose of the random stream that draws the design


@dataclass(frozen=True)
class IAMFM(Parametric, PeriodicMechanism):
    """What the two instantiations share; they differ in the `method` of search.

    Attributes:
        tokens: Λ, most that a period's evaluations may cost, payments included; None: no limit.
        payments: share of Λ that is kept for the payments.
        how: payments are found: "aco", "naive", "naive-common" or "none"
            (`mechanisms.iamfm.counterfactual`).
        user_weight: μ, money per unit of user satisfaction.
        odds: o(1), ..., o(K): what strengths 1..K mean (`configuration.Steering`).
        cap: most configurations; all (K + 1)^N of them if they are no more, else a sampled design.
        period: rounds for which bids are read at once.
        seed: of the design, and of evaluations outside of a market.
    """

    generation: ClassVar[str] = "guided"
    tells_of_other_bids: ClassVar[bool] = False
    short_replies: ClassVar[bool] = True

    tokens: float | None = 40_000
    payments: float = 0.3
    how: str = "aco"
    user_weight: float = 1.0
    odds: Sequence[float] = (0.1, 0.4)
    cap: int = 64
    period: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens is not None:
            positive("tokens", self.tokens)
        non_negative("payments", self.payments)
        if self.payments >= 1:
            raise BadInput(f"payments is {self.payments!r}; give a share of the tokens below 1")
        one_of("how", self.how, HOW)
        non_negative("user_weight", self.user_weight)
        for name, least in (("cap", 1), ("period", 1), ("seed", 0)):
            whole(name, getattr(self, name), least)
        object.__setattr__(self, "odds", self.steering.odds)  # checked, and hashable

    @property
    @abstractmethod
    def method(self) -> Method:
        """How configurations are searched."""

    @property
    def steering(self) -> Steering:
        """What strengths mean."""
        return Steering(self.odds)

    @property
    def writing(self) -> Mapping[str, Any]:
        """Guided insertion, of which every configuration is a policy."""
        return {"generation": self.generation, "inline_rate": 0.0}

    @property
    def exact(self) -> Mechanism:
        """VCG over the same configurations, their outcomes known: the limit of Λ → ∞."""
        return replace(self, tokens=None)

    def estimates(self, pool: ReplyPool) -> Mapping[str, Any]:
        """Other bids by a period's own evaluations; nothing is estimated without a limit."""
        if self.tokens is None:
            return {}
        return {
            "estimate": "evaluations of the period",
            "tokens": self.tokens,
            "configurations": len(self.evaluator(pool).configurations),
        }

    def evaluator(self, pool: ReplyPool) -> RecordedEvaluator:
        """Of the origin of `pool`, made once.

        Raises:
            BadInput: replies that were not written by guided insertion.
        """
        key = "iamfm", self.odds, self.cap, self.seed
        return pool.derived(key, self._evaluator)

    def plan(self, pool: ReplyPool, bids: Floats, seed: int) -> Sponsorship:
        """Search, settle, and commit; the same pool, bids and seed give the same plan."""
        kept = pool.derived(("iamfm plans", self), lambda _: {})
        key = bids.tobytes(), seed
        if key not in kept:
            if len(kept) >= _PLANS:
                kept.clear()
            # a copy: the caller may go on to write other bids into its array
            kept[key] = self._plan(pool.origin, bids.copy(), seed)
        return kept[key]

    def _plan(self, origin: ReplyPool, bids: Floats, seed: int) -> Sponsorship:
        evaluator = self.evaluator(origin)
        if self.tokens is None:
            settlement = exact_vcg(evaluator.truth(), bids, self.user_weight)
            return Sponsorship(evaluator, origin, settlement, self.user_weight, None)
        rng = np.random.default_rng([self.seed, seed])
        fresh = evaluator.reseeded(int(rng.integers(2**32)))
        known = Evaluations(fresh, TokenBudget(self.tokens))
        weights, allowance = weights_of(bids, self.user_weight), (1 - self.payments) * self.tokens
        self.method.search(known, weights, allowance, "allocation", rng)
        # what the search has left over pays for payments, too
        left = known.budget.left if self.how != "none" else 0.0
        settlement = settle(known, self.method, bids, self.user_weight, left, rng, self.how)
        return Sponsorship(evaluator, origin, settlement, self.user_weight, self.tokens)

    def _evaluator(self, origin: ReplyPool) -> RecordedEvaluator:
        rng = np.random.default_rng([self.seed, _CONFIGURATIONS])
        chosen = design(origin.num_advertisers, self.steering.strongest, self.cap, rng)
        return RecordedEvaluator(origin, chosen, self.steering, seed=self.seed)


@dataclass(frozen=True)
class IAMFMElimination(IAMFM):
    """IAMFM by elimination: many configurations are looked at cheaply, few thoroughly.

    Attributes:
        by: "halving" (successive halving) or "confidence" (confidence bounds).
    """

    name: ClassVar[str] = "iamfm-elimination"

    by: str = "halving"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("by", self.by, ("halving", "confidence"))

    @property
    def method(self) -> Method:
        """As `by` says."""
        return SuccessiveHalving() if self.by == "halving" else ConfidenceElimination()


@dataclass(frozen=True)
class IAMFMModel(IAMFM):
    """IAMFM by a model: a Gaussian process over configurations and levels says where to look."""

    name: ClassVar[str] = "iamfm-model"

    @property
    def method(self) -> Method:
        """The Gaussian process."""
        return ModelBased()


@dataclass(frozen=True, eq=False)
class Sponsorship(Plan):
    """A period's configuration and prices.

    Attributes:
        evaluator: of the pool.
        origin: the pool.
        settlement: what was chosen, and what it was chosen by; money per request.
        user_weight: μ.
        limit: Λ; None for none.
    """

    evaluator: RecordedEvaluator
    origin: ReplyPool
    settlement: Settlement
    user_weight: float
    limit: float | None

    @property
    def bids(self) -> Floats:
        """(N,) as read."""
        return self.settlement.bids

    @property
    def prices(self) -> Floats:
        """(N,) of a click, at most the bid."""
        return self.settlement.prices

    @property
    def strengths(self) -> Ints:
        """(N,) the configuration played."""
        return self.evaluator.configurations[self.settlement.chosen]

    @cached_property
    def shown(self) -> Floats:
        """(K, M) probabilities of all replies of the pool."""
        return self.evaluator.probabilities(self.strengths)

    def probabilities(self, pool: ReplyPool) -> Floats:
        """(B, M) of the pool's replies, or of others that were written likewise."""
        if pool.origin is self.origin:
            return self.shown[pool.rows]
        return steered(pool, self.strengths[pool.ads], self.evaluator.steering)

    def along(self, grids: Floats) -> Alternatives:
        """Other bids by the evaluations of the period; see the module."""
        found = outcomes_along(self.settlement, self.user_weight, grids)
        chosen, outcome = np.unique(found.chosen, return_inverse=True)
        prices = np.divide(
            found.payments, found.itctr, out=np.zeros_like(grids), where=found.itctr > 0
        )
        return Alternatives(
            outcome=outcome.reshape(grids.shape),
            prices=np.minimum(prices, grids),  # only rounding goes above
            itctr=np.stack([self._clicks(s) for s in chosen]),
        )

    @property
    def record(self) -> Mapping[str, Any]:
        """Tokens by purpose, the configuration, and welfare as reported, per request.

        `believed_welfare` is W(s*) by the evaluations, `welfare` by the pool, and `best_welfare`
        the greatest of those searched among, by the pool.
        """
        spent, weights = self.settlement.tokens, weights_of(self.bids, self.user_weight)
        welfare = self.evaluator.truth() @ weights
        return {
            "tokens_limit": self.limit,
            "tokens_allocation": float(spent.get("allocation", 0.0)),
            "tokens_payments": float(spent.get("payments", 0.0)),
            "configuration": self.settlement.chosen,
            "strengths": self.strengths.tolist(),
            "prices": self.prices.tolist(),
            "believed_welfare": self.settlement.welfare,
            "welfare": float(welfare[self.settlement.chosen]),
            "best_welfare": float(welfare.max()),
        }

    def _clicks(self, configuration: int) -> Floats:
        """(K, N) expected clicks by request of the pool and advertiser."""
        shown = self.evaluator.probabilities(self.evaluator.configurations[configuration])
        clicks = np.zeros((len(shown), len(self.bids)))
        rows = np.arange(len(shown))[:, None]
        clicks[rows, self.origin.ads] = expectation(shown, self.origin.ctr)
        return clicks

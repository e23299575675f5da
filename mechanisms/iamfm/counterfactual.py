"""VCG payments on a token budget: Active Counterfactual Optimization, and what it is compared to.

Clarke's pivot `p_i = W_{−i}(s*_{−i}) − W_{−i}(s*)` wants, beside the best configuration s*, the
best one without advertiser i, for every i: n further searches (`naive`, and on the allocation's
own pairs `naive-common`). But evaluations hold no bids, so the samples that found s* speak of all n
counterfactual problems as well. **Active Counterfactual Optimization** (ACO; named in the abstract
of arXiv 2604.06263, whose full text was not at hand: what follows is derived from it, from
successive halving, Karnin et al. 2013, and LUCB, Kalyanakrishnan et al. 2012) goes on from these
samples.

In problem i the incumbent c_i is the best candidate for W_{−i} so far. A configuration s
*qualifies* where the upper confidence bound of W_{−i}(s) − W_{−i}(c_i) is above 0. One successive
elimination serves all problems: a rung takes, of those that qualify for any i, the best by W_{−i},
and s* and the incumbents, which are what is paid for. From rung to rung a problem keeps one in η,
and problems overlap: on synthetic ones with n = 5, the first rungs have about twice the
configurations of one search's, and the last ones three times. The search for the allocation stands
for the rung before the first. What a rung has shown decides anew who qualifies, also of those left
out before. All of it is at the unbiased level: with the biased one in the first rungs it was no
better. Where nothing is in doubt, nothing is spent.

**Paired differences.** Pairs of one number share query and random numbers, so W(s) − W(r) may be
known better from the m pairs that s and r have in common, by the mean of m differences, than from
what is believed of s and of r. What has the smaller standard error is used, for s by s. Believed
outcomes are X(r) + [X(s) − X(r)] by it, with one r for all s.

**Candidates.** The maximum over many thinly sampled configurations is the luckiest of them. So s*
is the method's choice before the payments, unless after them another one is better by `SURE`
standard errors. And s*_{−i} is chosen among *candidates*, which have unbiased pairs: s*, those
known about as well as the method's choice when it was made (standard error of W at most
`WELL_KNOWN` times its own), and for every i the one of the highest lower bound of W_{−i}. None of
them is believed to be better than s*: those that seem to be, but not surely, are not trusted, or
everybody would be charged for what the search may have missed. So the settlement is exact VCG
(`mechanisms.iamfm.exact`) of the believed outcomes on the candidates: no clamp binds, and a report
that leads to the same samples and candidates gains nothing on what is believed. How near to
truthful all of it is: `mechanisms.iamfm.incentives`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.checks import non_negative, one_of
from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import Belief, Evaluations, weights_of
from mechanisms.iamfm.exact import Settlement, checked_bids, priced
from mechanisms.iamfm.method import Method
from mechanisms.iamfm.sampling import LEAST_PAIRS, Purse
from mechanisms.pool import Bools, Floats, Ints

HOW = ("aco", "naive", "naive-common", "none")
PURPOSE = "payments"
CONFIDENCE = 2.0  # z: standard errors from a mean to its confidence bound
WELL_KNOWN = 1.5  # with equal noise: at least 1/1.5² of the pairs
PESSIMISM = 0.5  # standard errors from a mean to the lower bound that makes a candidate
SURE = 3.0  # standard errors by which another configuration takes the place of the first choice
ETA = 3  # η: a rung of ACO keeps one in so many of the last, in each problem
FEWEST_PAIRS = 4  # a rung takes no more configurations than can have so many pairs each
MOST_PAIRS = 4096  # of a configuration, however much there is to spend; bounds memory
PRIOR_PAIRS = 4.0  # that the pooled covariance of differences counts for


def settle(
    known: Evaluations,
    method: Method,
    bids: ArrayLike,
    user_weight: float,
    tokens: float,
    rng: np.random.Generator,
    how: str = "aco",
) -> Settlement:
    """Choose a configuration and set payments after a search, and spend tokens on the payments.

    Args:
        known: the samples of the search for the allocation; more may be added.
        method: by which was searched.
        bids: (n,) per click.
        user_weight: μ, money per unit of user satisfaction.
        tokens: allowance for payments, out of the budget of `known`.
        rng: for the naive ways.
        how: "aco"; "naive", n separate searches that start from nothing and share the allowance
            equally, each on pairs of its own; "naive-common", the same on the pairs of the
            allocation, so that query noise cancels in W_{−i}(s*_{−i}) − W_{−i}(s*); "none", what
            is known already.

    Raises:
        BadInput: unfit bids, tokens or `how`; nothing is known of any configuration, or an
            allowance of naive runs that buys no evaluation; a budget without limit.
    """
    bids = checked_bids(bids, known.evaluator.configurations.shape[1])
    non_negative("user_weight", user_weight)
    non_negative("tokens for payments", tokens)
    one_of("how", how, HOW)
    problem = _Problem.of(known, method, bids, user_weight)
    if how == "aco":
        _sample_actively(problem, tokens)
    anew = how in ("naive", "naive-common")
    elsewhere = _search_anew(problem, tokens, rng, how == "naive-common") if anew else None
    return problem.priced(method.belief(known), elsewhere)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is to be chosen and paid for, at the bids played.

    Attributes:
        first: the method's choice before the payments.
        trusted: (S,) whether a configuration was known about as well then.
    """

    known: Evaluations
    method: Method
    bids: Floats
    user_weight: float
    first: int
    trusted: Bools

    @classmethod
    def of(cls, known: Evaluations, method: Method, bids: Floats, user_weight: float) -> _Problem:
        weights = weights_of(bids, user_weight)
        first = method.choose(known, weights)
        welfare, error = method.belief(known).welfare(weights)
        if not np.isfinite(welfare[first]):
            raise BadInput(
                "no configuration was evaluated before the payments; give the search more tokens"
            )
        trusted = np.isfinite(welfare) & (error <= WELL_KNOWN * error[first])
        return cls(known, method, bids, user_weight, first, trusted)

    def without(self, i: int) -> Floats:
        """(n + 1,) weights of an outcome in W_{−i}."""
        return weights_of(self.bids, self.user_weight, without=i)

    def priced(self, belief: Belief, elsewhere: tuple[Ints, Floats] | None = None) -> Settlement:
        """Choice and payments by what is believed.

        Args:
            belief: of the outcomes.
            elsewhere: (n,) s*_{−i} and (n,) W_{−i}(s*_{−i}) as other searches found them; else the
                best of the candidates.
        """
        weights = weights_of(self.bids, self.user_weight)
        apart = differences(self.known, belief, self.first, weights)
        outcomes = _as_rates(belief.mean[self.first] + apart.mean)
        chosen = self._choice(apart)
        return priced(
            outcomes,
            self._candidates(apart, (outcomes * weights).sum(axis=1), chosen),
            self.bids,
            self.user_weight,
            self.known.budget.spent,
            chosen=chosen,
            elsewhere=elsewhere,
        )

    @property
    def _sampled(self) -> Bools:
        """(S,) whether a configuration has unbiased pairs that tell an error."""
        return self.known.counts[self.known.full] >= LEAST_PAIRS

    def _choice(self, apart: Belief) -> int:
        """s*, by how the others differ from the first choice."""
        gap, error = apart.welfare(weights_of(self.bids, self.user_weight))
        lower = np.where(self._sampled, gap - SURE * error, -np.inf)
        return int(lower.argmax()) if lower.max() > 0 else self.first

    def _candidates(self, apart: Belief, welfare: Floats, chosen: int) -> Ints:
        """(k,) configurations that s* and s*_{−i} are the best of; see the module."""
        rounding = 1e-12 * abs(welfare[chosen])
        allowed = self._sampled & (welfare <= welfare[chosen] + rounding)
        candidate = self.trusted & allowed
        candidate[chosen] = True
        for i in range(len(self.bids)):
            gap, error = apart.welfare(self.without(i))
            lower = np.where(allowed, gap - PESSIMISM * error, -np.inf)
            candidate[lower.argmax()] |= lower.max() > 0
        return np.flatnonzero(candidate)


def differences(known: Evaluations, belief: Belief, reference: int, weights: Floats) -> Belief:
    """What is known of X(s) − X(reference), for every s.

    From the pairs that both have at the unbiased level, where these tell more of its weighted sum
    than the two beliefs do, taken for independent; else from the beliefs.
    """
    mean = belief.mean - belief.mean[reference]
    covariance = belief.covariance + belief.covariance[reference]
    paired = _paired(known, reference)
    _, error = Belief(mean, covariance).welfare(weights)
    _, paired_error = paired.welfare(weights)
    better = paired_error < error
    mean[better], covariance[better] = paired.mean[better], paired.covariance[better]
    mean[reference], covariance[reference] = 0.0, 0.0
    return Belief(mean, covariance)


def _paired(known: Evaluations, reference: int) -> Belief:
    """Differences from the reference by common pairs; NaN mean where there are fewer than two.

    Covariances of few pairs are small by chance for some of many configurations, which confidence
    bounds would then trust. So each is shrunk towards the covariance pooled over all.
    """
    S, k = len(known.evaluator.configurations), known.evaluator.configurations.shape[1] + 1
    mean, scatter = np.full((S, k), np.nan), np.full((S, k, k), np.inf)
    counts = known.counts[known.full]
    common = np.minimum(counts, counts[reference])
    common[reference] = 0
    pooled, freedom = np.zeros((k, k)), 0
    for pairs in np.unique(common[common > 1]):
        mine = np.flatnonzero(common == pairs)
        apart = known.outcomes(known.full, mine, pairs)
        apart = apart - known.outcomes(known.full, np.array([reference]), pairs)
        mean[mine] = apart.mean(axis=1)
        apart -= mean[mine][:, None]
        scatter[mine] = np.einsum("spi,spj->sij", apart, apart)
        pooled += scatter[mine].sum(axis=0)
        freedom += len(mine) * (int(pairs) - 1)
    have = np.flatnonzero(common > 1)
    m = common[have, None, None]
    prior = PRIOR_PAIRS * pooled / max(freedom, 1)
    scatter[have] = (scatter[have] + prior) / ((m - 1 + PRIOR_PAIRS) * m)
    return Belief(mean, scatter)


def _as_rates(outcomes: Floats) -> Floats:
    """Outcomes with no click rate below 0, which brings every estimate nearer to the truth."""
    outcomes = outcomes.copy()
    outcomes[..., :-1] = np.maximum(outcomes[..., :-1], 0.0)
    return outcomes


def _sample_actively(problem: _Problem, tokens: float) -> None:
    """Active Counterfactual Optimization: `tokens` on one elimination for all n problems."""
    known = problem.known
    if not np.isfinite(min(tokens, known.budget.left)):
        raise BadInput("payments by ACO need a finite number of tokens: noise never ends")
    purse = Purse.of(known, tokens, PURPOSE, MOST_PAIRS)
    places = _places(problem)
    most = int(places[np.isfinite(places)].max(initial=0)) + 1
    rungs = max(2, int(np.ceil(np.log(most) / np.log(ETA) - 1e-9)))
    for rung in range(1, rungs):  # rung 0 was the search for the allocation
        arms = _foremost(places, int(np.ceil(most / ETA**rung)))
        share = purse.left / (rungs - rung)
        arms = arms[: purse.pays_for(arms, known.full, FEWEST_PAIRS, share)]
        purse.spread(arms, known.full, share)
        places = _places(problem)
    purse.exhaust(_foremost(places, ETA), known.full)


def _foremost(places: Floats, keep: int) -> Ints:
    """Configurations in a place before `keep`, best first."""
    order = np.argsort(places, kind="stable")
    return order[places[order] < keep]


def _places(problem: _Problem) -> Floats:
    """(S,) the best place 0, 1, ... that s takes in any problem; infinite if it never qualifies.

    In problem i those that qualify are placed by W_{−i}. s* and the incumbent are placed before all
    of them, at −1, where anything that W_{−i} of the incumbent is compared with is in doubt.
    """
    belief = problem.method.belief(problem.known)
    plan = problem.priced(belief)
    belief = _guessed(belief)
    places = np.full(len(belief.mean), np.inf)
    for i in np.flatnonzero(plan.values > 0):
        incumbent, weights = plan.counterfactual[i], problem.without(i)
        gap, error = differences(problem.known, belief, incumbent, weights).welfare(weights)
        doubt = error > 1e-12 * plan.values.max()  # below that it is rounding
        rivals = np.flatnonzero(doubt & (gap + CONFIDENCE * error > 0))
        rivals = rivals[np.argsort(-gap[rivals], kind="stable")]
        places[rivals] = np.minimum(places[rivals], np.arange(len(rivals)))
        if len(rivals) or doubt[plan.chosen]:
            places[[incumbent, plan.chosen]] = -1
    return places


def _guessed(belief: Belief) -> Belief:
    """The belief with something for configurations of which nothing is known.

    They are taken for exchangeable with the others: mean and covariance are those over the known
    ones; of a single one, the covariance is the largest that outcomes in [0, 1] can have.
    """
    known = np.isfinite(belief.mean).all(axis=1)
    if known.all():
        return belief
    k = belief.mean.shape[1]
    mean, covariance = belief.mean.copy(), belief.covariance.copy()
    mean[~known] = mean[known].mean(axis=0)
    spread = np.cov(mean[known], rowvar=False) if known.sum() > 1 else np.eye(k) / 4
    covariance[~known] = spread
    return Belief(mean, covariance)


def _search_anew(
    problem: _Problem, tokens: float, rng: np.random.Generator, common: bool
) -> tuple[Ints, Floats]:
    """(n,) s*_{−i} and (n,) W_{−i}(s*_{−i}) as found by a search of its own for every i.

    On `common` pairs the second is what is believed of s*, and a difference that the search saw.
    """
    known, method, n = problem.known, problem.method, len(problem.bids)
    played = problem.priced(method.belief(known)) if common else None
    found, worth = np.zeros(n, dtype=np.int64), np.zeros(n)
    for i in range(n):
        weights = problem.without(i)
        evaluator = known.evaluator if common else known.evaluator.reseeded(_seed(rng))
        fresh = Evaluations(evaluator, known.budget)
        method.search(fresh, weights, tokens / n, PURPOSE, rng)
        found[i] = method.choose(fresh, weights)
        worth[i] = _as_rates(method.belief(fresh).mean[found[i]]) @ weights
        if not np.isfinite(worth[i]):
            raise BadInput(
                f"{tokens:.0f} tokens for {n} naive payments buy no evaluation; give more of them"
            )
        if played is not None:
            gap = _gap_across(fresh, int(found[i]), problem, played.chosen, weights)
            worth[i] = worth[i] if gap is None else played.outcomes[played.chosen] @ weights + gap
    return found, worth


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))


def _gap_across(
    fresh: Evaluations, found: int, problem: _Problem, chosen: int, weights: Floats
) -> float | None:
    """Weighted X(found) − X(chosen) on the pairs that a fresh search and the allocation's share.

    None where these are few, or tell less than what either believes of the one it chose.
    """
    known, level = problem.known, problem.known.full
    pairs = int(min(fresh.counts[level, found], known.counts[level, chosen]))
    if pairs < FEWEST_PAIRS:
        return None
    theirs = known.outcomes(level, np.array([chosen]), pairs)[0]
    apart = (fresh.outcomes(level, np.array([found]), pairs)[0] - theirs) @ weights
    _, error = problem.method.belief(fresh).welfare(weights)
    _, other = problem.method.belief(known).welfare(weights)
    if apart.std(ddof=1) / np.sqrt(pairs) > np.hypot(error[found], other[chosen]):
        return None
    return float(apart.mean())

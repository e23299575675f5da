"""Problems with known truth, to measure methods of search and payments against.

A configuration s sets a strength s_i in 0..K for each of n advertisers. Ads compete for places, and
attention saturates: with pull g_i(k) = 1 − exp(−κ_i·k), ad i is shown and clicked with probability

    E[ctr_i(s)] = r_i·e_i(s),      e_i(s) = g_i(s_i) / (1 + c·Σ_{j≠i} g_j(s_j)),

which rises in its own strength, ever less, and falls with its rivals'. Users are the less
satisfied the more is advertised, and ever more so:

    E[u(s)] = u_0 − A·L(s)²,       L(s) = Σ_i h_i·s_i / Σ_i h_i·K  in [0, 1].

Advertisers differ in click rate r_i, saturation κ_i, burden on users h_i and value per click, all
drawn from the problem's seed. `roughness` adds what no formula foretells: e_i(s) and u(s) become
Φ(Φ⁻¹(·) + roughness·z), z standard normal for each configuration and outcome.

**Pairs.** Ad i is shown in pair p under s where the latent x = √q·z_p + √(1 − q)·z_sp, a standard
normal, is below Φ⁻¹(e_i(s)), and then has click probability r_i·ρ_pi, else 0: the outcome is this
probability, as users in a market have it too, and no click is drawn. The query's z_p and ρ_pi (of
mean 1) are the same under all configurations and levels, z_sp is the reply's own. User
satisfaction is uniform around its mean, by the same x. `noise` scales all departures from the mean:
at 0 every pair is the truth. Outcomes are in [0, 1] and their means are exact.

**Levels.** `full` is unbiased. `short` cuts replies: ads that come late are missed, the more the
more is advertised and the later advertiser i is wont to come (λ_i in [0, 2]),

    E[ctr_i(s) | short] = E[ctr_i(s)]·(1 − β·λ_i·L(s)),
    E[u(s) | short]     = u_0 − (u_0 − E[u(s)])·(1 − β·L(s)),

a smooth bias whose size is β and which moves the optimum. Its replies are of noise of their own, as
far as `level_correlation` leaves it.

Random numbers are SplitMix64 (Steele, Lea & Flood 2014) read at an index made of configuration,
pair and outcome. So a sample is a function of what is asked for, in whatever order it is asked.

Shapes: configurations S, advertisers n, pairs P.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import Level, weights_of
from mechanisms.pool import Floats, Ints

SHORT, FULL = 0, 1
_MOST_CODES, _MOST_ADVERTISERS = 2**24, 30  # so that an index of 2^32 pairs fits 64 bits
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class SyntheticSettings:
    """What problems are drawn from.

    Attributes:
        advertisers: n.
        strengths: K, the highest strength.
        crowding: c >= 0, how much a rival's pull takes from an ad; 0 is no competition.
        satisfaction: u_0, of users who see no ad, in (0, 1).
        annoyance: A in [0, u_0), satisfaction lost where everybody is at the highest strength.
        user_weight: μ >= 0, welfare per unit of satisfaction, in the money of values; advertisers'
            values are uniform in 0.5..1.5 per click, click rates r_i in 0.1..0.5.
        roughness: standard deviation of each configuration's own departure, in probits; 0 is none.
        noise: pairs' departures from the mean in [0, 1], 1 being click probabilities of single
            replies, in which an ad is shown or not.
        query_share: q in [0, 1], correlation across configurations of a pair's latent numbers.
        query_spread: half-width in [0, 1] of the relevance ρ of an ad to a query, about 1.
        user_spread: half-width in [0, 1] of satisfaction, in units of min(u, 1 − u).
        bias: β in [0, 1/2], of level `short`; 0 is none.
        level_correlation: of a reply's own latent numbers at the two levels, in [0, 1].
        tokens: the most that a pair costs at level `full`; costs are uniform above half of it.
        short_tokens: the same at level `short`.
    """

    advertisers: int = 5
    strengths: int = 2
    crowding: float = 0.3
    satisfaction: float = 0.8
    annoyance: float = 0.6
    user_weight: float = 1.0
    roughness: float = 0.0
    noise: float = 1.0
    query_share: float = 0.7
    query_spread: float = 0.5
    user_spread: float = 0.5
    bias: float = 0.3
    level_correlation: float = 0.8
    tokens: int = 64
    short_tokens: int = 16

    def __post_init__(self) -> None:
        bounds = {
            "advertisers": (1, _MOST_ADVERTISERS),
            "strengths": (1, _MOST_CODES),
            "crowding": (0, np.inf),
            "satisfaction": (1e-6, 1 - 1e-6),
            "annoyance": (0, self.satisfaction * (1 - 1e-6)),
            "user_weight": (0, np.inf),
            "roughness": (0, np.inf),
            "bias": (0, 0.5),
            "tokens": (1, np.inf),
            "short_tokens": (1, self.tokens),
        }
        for each in fields(self):
            low, high = bounds.get(each.name, (0, 1))
            if not low <= getattr(self, each.name) <= high:
                raise BadInput(
                    f"synthetic.{each.name} is {getattr(self, each.name)}; "
                    f"give a number from {low:g} to {high:g}"
                )
        if (self.strengths + 1) ** self.advertisers > _MOST_CODES:
            raise BadInput(
                f"{self.strengths + 1}^{self.advertisers} configurations are more than "
                f"{_MOST_CODES}; take fewer advertisers or strengths"
            )


class SyntheticEvaluator:
    """One problem drawn from `settings`: an `Evaluator` with known truth.

    Attributes:
        settings: what it was drawn from.
        seed: of the problem, which is the same whatever `configurations` are looked at.
        pair_seed: of the noise.
        configurations: (S, n) strengths.
        levels: `short`, which is biased unless `settings.bias` is 0, and `full`.
        values: (n,) advertisers' values per click; no part of the outcomes.
    """

    def __init__(
        self,
        settings: SyntheticSettings | None = None,
        seed: int = 0,
        configurations: Ints | None = None,
        pair_seed: int = 0,
    ) -> None:
        """Draw a problem.

        Args:
            settings: default `SyntheticSettings()`.
            seed: draws the advertisers.
            configurations: (S, n) to look at; default all (K + 1)^n.
            pair_seed: draws the noise.

        Raises:
            BadInput: configurations of a wrong shape or with strengths beyond 0..K.
        """
        self.settings = settings = SyntheticSettings() if settings is None else settings
        self.seed, self.pair_seed = seed, pair_seed
        self.configurations = _checked(settings, configurations)
        self.levels = (
            Level("short", settings.short_tokens, biased=settings.bias > 0),
            Level("full", settings.tokens),
        )
        n = settings.advertisers
        rng = np.random.default_rng([seed, 0])
        self._click_rates = rng.uniform(0.1, 0.5, n)
        self._saturation = rng.uniform(0.6, 1.8, n)
        self._burden = rng.uniform(0.5, 1.5, n)
        self._lateness = rng.uniform(0.0, 2.0, n)
        self.values = rng.uniform(0.5, 1.5, n)
        self._codes = _codes(self.configurations, settings.strengths)
        self._means = self._level_means()
        exposures = self._means[:, :, :n] / self._click_rates
        self._thresholds = ndtri(exposures)  # -inf where never shown
        self._keys = np.random.SeedSequence([pair_seed, seed, 1]).generate_state(5, np.uint64)

    @property
    def weights(self) -> Floats:
        """(n + 1,) weights of an outcome in welfare, where advertisers bid their values."""
        return weights_of(self.values, self.settings.user_weight)

    def truth(self) -> Floats:
        """(S, n + 1) expected outcomes at level `full`."""
        return self._means[FULL].copy()

    def level_truth(self, level: int) -> Floats:
        """(S, n + 1) expected outcomes at a level."""
        return self._means[level].copy()

    def reseeded(self, seed: int) -> SyntheticEvaluator:
        """The same problem, with other pairs behind the numbers: `seed` is their `pair_seed`."""
        return SyntheticEvaluator(self.settings, self.seed, self.configurations, seed)

    def sample(self, which: Ints, level: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """Outcomes (k, P, n + 1) and tokens (k, P) of pairs start..stop−1; see `Evaluator`."""
        which = np.asarray(which, dtype=np.int64)
        settings, n = self.settings, self.settings.advertisers
        query, relevance, reply, cut, length = self._keys
        outcomes = np.arange(n + 1, dtype=np.uint64)
        pairs = np.arange(start, stop, dtype=np.uint64)
        # index = 64·(pair + 2^32·configuration) + outcome; level doubles as the outcome of lengths
        by_pair = pairs[:, None] * np.uint64(64) + outcomes
        replies = (self._codes[which][:, None] << np.uint64(32)) + pairs
        by_reply = replies[:, :, None] * np.uint64(64) + outcomes

        own = ndtri(_uniform(reply, by_reply))
        if level == SHORT:
            rho = settings.level_correlation
            own = rho * own + np.sqrt(1 - rho**2) * ndtri(_uniform(cut, by_reply))
        share = settings.query_share
        latent = np.sqrt(share) * ndtri(_uniform(query, by_pair)) + np.sqrt(1 - share) * own

        mean = self._means[level][which][:, None]
        shown = latent[:, :, :n] < self._thresholds[level][which][:, None]
        fit = 1 + settings.query_spread * (2 * _uniform(relevance, by_pair[:, :n]) - 1)
        drawn = np.empty_like(latent)
        drawn[:, :, :n] = shown * (self._click_rates * fit)
        u = mean[:, :, n]
        reach = settings.user_spread * np.minimum(u, 1 - u)
        drawn[:, :, n] = u + reach * (2 * ndtr(latent[:, :, n]) - 1)
        at_level = replies * np.uint64(64) + np.uint64(level)
        tokens = np.ceil(self.levels[level].tokens * (1 + _uniform(length, at_level)) / 2)
        return mean + settings.noise * (drawn - mean), tokens

    def _level_means(self) -> Floats:
        """(L, S, n + 1) expected outcomes by level."""
        settings, strengths = self.settings, self.configurations
        pull = 1 - np.exp(-self._saturation * strengths)
        rivals = pull.sum(axis=1, keepdims=True) - pull
        exposure = pull / (1 + settings.crowding * rivals)
        load = strengths @ self._burden / (settings.strengths * self._burden.sum())
        satisfaction = settings.satisfaction - settings.annoyance * load**2
        full = np.column_stack([exposure, satisfaction])
        if settings.roughness > 0:
            key = np.random.SeedSequence([self.seed, 2]).generate_state(1, np.uint64)[0]
            outcomes = np.arange(full.shape[1], dtype=np.uint64)
            own = ndtri(_uniform(key, self._codes[:, None] * np.uint64(64) + outcomes))
            full = ndtr(ndtri(full) + settings.roughness * own)
        full[:, :-1] *= self._click_rates

        short = full.copy()
        missed = settings.bias * load[:, None]
        short[:, :-1] *= 1 - missed * self._lateness
        short[:, -1:] += missed * (settings.satisfaction - full[:, -1:])
        return np.stack([short, full])


def _checked(settings: SyntheticSettings, configurations: Ints | None) -> Ints:
    n, K = settings.advertisers, settings.strengths
    if configurations is None:
        return np.indices((K + 1,) * n).reshape(n, -1).T.astype(np.int64)
    configurations = np.asarray(configurations, dtype=np.int64)
    if configurations.ndim != 2 or configurations.shape[1] != n or not len(configurations):
        raise BadInput(f"configurations are {configurations.shape}; give (S, {n}), S >= 1")
    if configurations.min() < 0 or configurations.max() > K:
        raise BadInput(f"configurations hold a strength beyond 0..{K}")
    return configurations


def _codes(configurations: Ints, K: int) -> NDArray[np.uint64]:
    """(S,) a number for each configuration that does not depend on which others there are."""
    return (configurations @ (K + 1) ** np.arange(configurations.shape[1])).astype(np.uint64)


def _uniform(key: np.uint64, index: NDArray[np.uint64]) -> Floats:
    """Numbers in the open unit interval: SplitMix64 of state `key`, read at `index`."""
    z = key + (index + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

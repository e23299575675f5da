"""The token auction on enumerated replies, where every expectation can be written out.

Recording is tested in `test_token_recording`.
"""

import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.gibbs import LowEffectiveSampleSize
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from mechanisms.token_auction import LOG_PROBS, NEVER, TokenAuction, critical_price, log_mixture
from tests.mechanisms.pools import close, generators, mean_charges, quick

# random weights leave any effective sample size
pytestmark = pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")


class World:
    """n LLMs with random next-symbol tables: V symbols, replies of T, all V^T of them listed."""

    def __init__(self, rng, ads=3, symbols=3, length=3, zeros=0.0):
        self.n, self.V, self.T = ads, symbols, length
        self.tables = {}
        for t in range(length):
            for prefix in product(range(symbols), repeat=t):
                p = rng.dirichlet(np.ones(symbols), ads)
                p[rng.random(p.shape) < zeros] = 0.0
                p[:, 0] += 1e-3  # nobody has nothing to say
                self.tables[prefix] = p / p.sum(axis=1, keepdims=True)
        self.replies = list(product(range(symbols), repeat=length))
        shape = (1, len(self.replies), ads)
        exposure = rng.random(shape) < 0.5
        self.ctr = np.where(exposure, rng.random(shape), 0.0)

    def log_probs(self):
        """(1, V^T, n, T), log 0 as in a pool."""
        out = np.empty((1, len(self.replies), self.n, self.T))
        for j, reply in enumerate(self.replies):
            for t, symbol in enumerate(reply):
                p = self.tables[reply[:t]][:, symbol]
                out[0, j, :, t] = np.where(p > 0, np.log(np.where(p > 0, p, 1.0)), NEVER)
        return out

    def density(self, alpha):
        """(V^T,) probability of each reply under the mixture, symbol by symbol."""
        return np.array(
            [
                np.prod([alpha @ self.tables[reply[:t]][:, s] for t, s in enumerate(reply)])
                for reply in self.replies
            ]
        )

    def payments(self, bids):
        """(n,) `Σ_prefix q(prefix)·TV(p_i, p_−i)·κ`, by the definition of total variation."""
        alpha, total = bids / bids.sum(), np.zeros(self.n)
        for prefix, p in self.tables.items():
            q = np.prod([alpha @ self.tables[prefix[:t]][:, s] for t, s in enumerate(prefix)])
            for i in range(self.n):
                rest = np.delete(bids, i)
                if rest.sum():
                    others = rest @ np.delete(p, i, axis=0) / rest.sum()
                    shift = abs(p[i] - others).sum() / 2
                    total[i] += q * shift * by_quadrature(bids[i], rest.sum())
        return total

    def pool(self, rows=None, log_gen=None):
        rows = np.arange(len(self.replies)) if rows is None else rows
        return ReplyPool.from_arrays(
            self.ctr[:, rows], log_gen=log_gen, extras={LOG_PROBS: self.log_probs()[:, rows]}
        )


def by_quadrature(b, rivals):
    """`∫_0^b z dα(z)` with α(z) = z/(z + B)."""
    return quad(lambda z: z * rivals / (z + rivals) ** 2, 0, b)[0]


@st.composite
def markets(draw):
    """A pool with recorded symbols, bids (B, n) with a few zeros, and their generator."""
    rng = draw(generators())
    B, M, n, T = (draw(st.integers(1, most)) for most in (3, 6, 4, 5))
    exposure = rng.random((B, M, n)) < 0.5
    log_probs = -rng.exponential(draw(st.sampled_from([0.0, 1.0, 20.0])), (B, M, n, T))
    never = rng.random(log_probs.shape) < 0.2
    never[:, :, 0] = False
    log_probs[never & draw(st.booleans())] = NEVER
    log_probs[..., int(rng.integers(1, T + 1)) :] = 0.0
    pool = ReplyPool.from_arrays(
        np.where(exposure, rng.random((B, M, n)), 0.0),
        log_gen=rng.normal(-40, 2, (B, M)),
        exposure=exposure,
        extras={LOG_PROBS: log_probs},
    )
    bids = rng.random((B, n)) * draw(st.sampled_from([0.01, 1.0, 100.0]))
    bids[rng.random((B, n)) < 0.2] = 0.0
    return pool, bids, rng


def with_log_probs(pool, log_probs):
    return ReplyPool.from_arrays(
        pool.ctr, log_gen=pool.log_gen, exposure=pool.exposure, extras={LOG_PROBS: log_probs}
    )


def test_worked_example():
    # one symbol; LLM 1 says x or y with 3/4, 1/4, LLM 2 with 1/4, 3/4; bids 1 and 1: q = 1/2, 1/2.
    log_probs = np.log([[[[0.75], [0.25]], [[0.25], [0.75]]]])
    pool = ReplyPool.from_arrays([[[0.8, 0.0], [0.0, 0.4]]], extras={LOG_PROBS: log_probs})
    found = TokenAuction(reply_symbols=1).allocate(pool, [1.0, 1.0])
    close(found.probabilities, [[0.5, 0.5]])
    close(found.itctr, [[0.4, 0.2]])
    # TV = 1/2, price ln 2 − 1/2
    close(found.payments, [[0.5 * (np.log(2) - 0.5)] * 2])
    # bids 3 and 1: q = 5/8, 3/8
    found = TokenAuction(reply_symbols=1).allocate(pool, [3.0, 1.0])
    close(found.probabilities, [[5 / 8, 3 / 8]])
    close(found.payments, [[0.5 * (np.log(4) - 3 / 4), 0.5 * 3 * (np.log(4 / 3) - 1 / 4)]])


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize("ads", [1, 2, 4])
def test_all_expectations_are_those_of_the_mixture(ads, zeros):
    """On all replies, generated uniformly, nothing is left to chance: equal to rounding."""
    rng = np.random.default_rng(ads)
    world = World(rng, ads=ads, zeros=zeros)
    pool = world.pool()
    for bids in (rng.random(ads), np.ones(ads), 10.0 ** rng.uniform(-3, 3, ads)):
        q = world.density(bids / bids.sum())
        assert q.sum() == pytest.approx(1)
        found = TokenAuction(reply_symbols=2.5).allocate(pool, bids)
        close(found.probabilities, [q])
        close(found.itctr, [q @ world.ctr[0]])
        close(2.5 * found.payments, [world.payments(bids)], bids.max())
        close(log_mixture(world.log_probs(), bids[None] / bids.sum())[0][q > 0], np.log(q[q > 0]))


def test_some_bid_nothing():
    world = World(np.random.default_rng(4), zeros=0.3)
    bids = np.array([2.0, 0.0, 1.0])
    found = TokenAuction(1.0).allocate(world.pool(), bids)
    close(found.probabilities, [world.density(bids / 3)])
    close(found.payments, [world.payments(bids)])
    assert found.payments[0, 1] == 0
    assert (found.payments[0, [0, 2]] > 0).all()


@pytest.mark.parametrize("rivals", [1e-12, 1e-3, 0.7, 5.0, 1e9])
@pytest.mark.parametrize("ratio", [0.0, 1e-9, 9.9e-5, 1.01e-4, 0.1, 0.999, 1.0, 3.0, 1e6])
def test_price_is_the_mean_critical_bid(ratio, rivals):
    # in units of B, by the substitution z = B·x
    exact = rivals * quad(lambda x: x / (1 + x) ** 2, 0, ratio, limit=500)[0] if ratio else 0.0
    got = critical_price(np.array(ratio * rivals), np.array(rivals))
    np.testing.assert_allclose(got, exact, rtol=1e-9, atol=0)


def test_price_at_the_edges():
    zero, one, huge, least = np.zeros(()), np.ones(()), np.array(1e300), np.array(5e-324)
    for b, rivals in ((zero, one), (one, zero), (zero, zero), (least, one), (one, least)):
        assert 0 <= critical_price(b, rivals) < 1e-300
    assert np.isfinite(critical_price(huge, one))
    assert critical_price(huge, one) <= huge
    bids, rivals = np.meshgrid(np.logspace(-9, 9, 60), np.logspace(-9, 9, 60))
    price = critical_price(bids, rivals)
    alpha = bids / (bids + rivals)
    assert (price >= 0).all()
    assert (price <= alpha * bids).all()  # the price of a switch is at most the bid
    assert (np.diff(price, axis=1) > 0).all()


def test_stable_sampling_charges_the_same():
    """Draw sigma, raise the bid until the symbol switches, charge the bid at which it did."""
    rng = np.random.default_rng(8)
    p, bids = rng.dirichlet(np.ones(5), 3), np.array([1.5, 0.8, 0.4])
    B, b = bids[1:].sum(), bids[0]
    others = bids[1:] @ p[1:] / B
    draws = 400_000
    at_zero = rng.choice(5, size=draws, p=others)
    # The share a of (p_1 − others) leaves a disliked symbol y for a likelier one at level
    # sigma < a·(others − p_1)/others, so each draw has one critical share, and one critical bid.
    loses = np.maximum(others - p[0], 0) / others
    sigma = rng.random(draws)
    with np.errstate(divide="ignore"):
        share = sigma / loses[at_zero]
    critical = np.where(share < 1, B * share / np.maximum(1 - share, 1e-300), np.inf)
    gains = np.maximum(p[0] - others, 0)
    switched_to = rng.choice(5, size=draws, p=gains / gains.sum())

    for z in (0.0, 0.3, b, 10.0):  # at every bid the symbol drawn is distributed as the mixture
        symbol = np.where(critical <= z, switched_to, at_zero)
        q = (B * others + z * p[0]) / (B + z)
        assert abs(np.bincount(symbol, minlength=5) / draws - q).max() < 0.004
    symbol = np.where(critical <= b, switched_to, at_zero)
    paid = np.where(critical <= b, critical, 0.0)
    pool = ReplyPool.from_arrays(
        np.zeros((1, 5, 3)), extras={LOG_PROBS: np.log(p.T)[None, ..., None]}
    )
    auction = TokenAuction(reply_symbols=1)
    found = auction.allocate(pool, bids)
    error = paid.std() / np.sqrt(draws)
    assert abs(paid.mean() - found.payments[0, 0]) < 4 * error
    charges = auction.charges(pool, bids)[0, :, 0]
    for y in range(5):  # and the charge for a symbol is the mean price where that was drawn
        mine = paid[symbol == y]
        assert abs(mine.mean() - charges[y]) <= 4 * mine.std() / np.sqrt(len(mine)) + 1e-12


def test_recorded_replies_reproduce_live_ones_under_other_bids():
    """Draws under M profiles, weighed to bids nobody wrote under: as a live mixture on average."""
    rng = np.random.default_rng(2)
    world = World(rng, ads=3, symbols=4, length=4)
    M = 40_000
    profiles = 100 ** rng.random((20, 3))
    profiles /= profiles.sum(axis=1, keepdims=True)
    densities = np.stack([world.density(profile) for profile in profiles])
    rows = np.concatenate([rng.choice(len(d), size=M // 20, p=d / d.sum()) for d in densities])
    pool = world.pool(rows, log_gen=np.log(densities.mean(axis=0))[None, rows])
    for bids in (np.array([5.0, 1.0, 1.0]), np.array([1.0, 30.0, 2.0]), np.array([0.0, 1.0, 3.0])):
        found = TokenAuction(1.0).allocate(pool, bids)
        q = world.density(bids / bids.sum())
        # live: as many draws under these bids
        live = rng.choice(len(q), size=M, p=q)
        exact, scale = q @ world.ctr[0], world.ctr.max()
        assert abs(found.itctr[0] - exact).max() < 0.02 * scale
        assert abs(world.ctr[0, live].mean(axis=0) - found.itctr[0]).max() < 0.02 * scale
        np.testing.assert_allclose(found.payments[0], world.payments(bids), rtol=0.05)
        assert 1 / (found.probabilities**2).sum() > M / 8


def test_replies_written_under_the_bids_played_weigh_the_same():
    world = World(np.random.default_rng(3))
    bids = np.array([[0.2, 0.5, 0.1]])
    log_probs = world.log_probs()
    pool = world.pool(log_gen=log_mixture(log_probs, bids / bids.sum()))
    close(TokenAuction().allocate(pool, bids).probabilities, 1 / 27)
    close(TokenAuction().allocate(pool, 1e5 * bids).probabilities, 1 / 27)


@quick
@given(markets())
def test_charges_have_the_payments_as_mean_and_never_exceed_the_bid(market):
    pool, bids, rng = market
    auction = TokenAuction(2.0)
    found = auction.allocate(pool, bids)
    close(found.probabilities.sum(axis=1), 1)
    close(mean_charges(auction, pool, bids, found), found.payments, bids.max())
    charges = auction.charges(pool, bids)
    symbols = pool.extras[LOG_PROBS].any(axis=2).sum(axis=2)
    assert (charges >= 0).all()
    assert (charges <= bids[:, None] * symbols[:, :, None] / 2 * (1 + 1e-9) + 1e-12).all()
    assert (charges[np.broadcast_to(bids[:, None] == 0, charges.shape)] == 0).all()
    outcome = auction.run(pool, bids, rng)
    rows = np.arange(len(bids))
    close(outcome.charges, charges[rows, outcome.chosen], bids.max())


@quick
@given(markets())
def test_counterfactuals_are_auctions(market):
    pool, bids, rng = market
    grid = rng.random((*bids.shape, 4)) * max(bids.max(), 1e-3)
    grid[:, :, 0], grid[:, :, 1] = bids, 0.0
    fast = TokenAuction(2.0).counterfactual(pool, bids, grid)
    slow = Mechanism.counterfactual(TokenAuction(2.0), pool, bids, grid)
    for mine, plain in zip(fast, slow, strict=True):
        close(mine, plain, grid.max())


@quick
@given(markets(), generators())
def test_order_of_advertisers_does_not_matter(market, rng):
    pool, bids, _ = market
    order = rng.permutation(bids.shape[1])
    moved = ReplyPool.from_arrays(
        pool.ctr[:, :, order],
        log_gen=pool.log_gen,
        exposure=pool.exposure[:, :, order],
        extras={LOG_PROBS: pool.extras[LOG_PROBS][:, :, order]},
    )
    found, other = (
        TokenAuction().allocate(pool, bids),
        TokenAuction().allocate(moved, bids[:, order]),
    )
    close(other.probabilities, found.probabilities)
    close(other.itctr, found.itctr[:, order])
    close(other.payments, found.payments[:, order], bids.max())


@quick
@given(markets(), st.sampled_from([1e-6, 0.3, 1e5]))
def test_money_has_no_unit(market, factor):
    pool, bids, _ = market
    found, scaled = (
        TokenAuction().allocate(pool, bids),
        TokenAuction().allocate(pool, factor * bids),
    )
    close(scaled.probabilities, found.probabilities)
    close(scaled.payments, factor * found.payments, factor * bids.max())


@quick
@given(markets())
def test_padding_and_symbols_that_all_would_write_alike_change_nothing(market):
    pool, bids, _ = market
    log_probs = pool.extras[LOG_PROBS]
    shape = (*log_probs.shape[:3], 3)
    found = TokenAuction().allocate(pool, bids)
    for more in (0.0, -0.7):
        longer = np.concatenate([log_probs, np.full(shape, more)], axis=3)
        other = TokenAuction().allocate(with_log_probs(pool, longer), bids)
        close(other.probabilities, found.probabilities)
        close(other.payments, found.payments, bids.max())
    alike = np.broadcast_to(log_probs[:, :, :1], log_probs.shape)
    free = TokenAuction().allocate(with_log_probs(pool, alike), bids)
    if bids.shape[1] > 1:
        close(free.payments, 0, bids.max())


@quick
@given(markets())
def test_a_lone_bidder_pays_nothing_and_has_its_own_llm(market):
    pool, bids, _ = market
    alone = np.where(np.arange(bids.shape[1]) == 0, 3.0, 0.0) * np.ones_like(bids)
    found = TokenAuction().allocate(pool, alone)
    assert (found.payments == 0).all()
    own = pool.extras[LOG_PROBS][:, :, 0].sum(axis=2) - pool.log_gen
    weights = np.exp(own - own.max(axis=1, keepdims=True))
    close(found.probabilities, weights / weights.sum(axis=1, keepdims=True))
    nobody = TokenAuction().allocate(pool, np.zeros_like(bids))
    equal = TokenAuction().allocate(pool, np.ones_like(bids))
    close(nobody.probabilities, equal.probabilities)
    assert (nobody.payments == 0).all()


def test_a_higher_bid_makes_the_symbols_one_likes_better_likelier():
    """For one symbol: monotone aggregation. Only there; whole replies may well differ."""
    rng = np.random.default_rng(6)
    world = World(rng, ads=3, symbols=6, length=1)
    p = np.exp(world.log_probs()[0, :, :, 0])
    bids = np.array([1.0, 0.5, 2.0])
    likes = p[:, 0] > p[:, 1:] @ bids[1:] / bids[1:].sum()
    world.ctr = np.broadcast_to(likes[None, :, None], (1, 6, 3)).astype(float)
    grid = np.broadcast_to(np.linspace(0, 20, 60), (1, 3, 60))
    itctr, payments = TokenAuction().counterfactual(world.pool(), bids[None], grid)
    assert (np.diff(itctr[0, 0]) > 0).all()
    assert (np.diff(payments[0]) > 0).all()


def test_replies_nobody_would_write():
    """With weight on nothing else, those with the fewest such symbols; no NaN, no warning."""
    log_probs = np.full((1, 3, 2, 2), np.log(0.5))
    log_probs[0, :, 0, 0] = NEVER  # LLM 1 would write none of these
    log_probs[0, 2, 0, 1] = NEVER
    pool = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5), extras={LOG_PROBS: log_probs})
    found = TokenAuction().allocate(pool, [1.0, 0.0])
    close(found.probabilities, [[0.5, 0.5, 0.0]])
    assert (found.payments == 0).all()


def test_no_ads():
    pool = ReplyPool.from_arrays(np.zeros((2, 3, 0)), extras={LOG_PROBS: np.zeros((2, 3, 0, 5))})
    found = TokenAuction().allocate(pool, np.zeros(0))
    close(found.probabilities, 1 / 3)
    itctr, payments = TokenAuction().counterfactual(pool, np.zeros((2, 0)), np.zeros((2, 0, 4)))
    assert itctr.shape == payments.shape == (2, 0, 4)
    outcome = TokenAuction().run(pool, np.zeros(0), np.random.default_rng(0))
    assert outcome.charges.shape == (2, 0)


@pytest.mark.filterwarnings("default::mechanisms.gibbs.LowEffectiveSampleSize")
def test_warns_where_the_bids_leave_one_reply():
    log_probs = np.array([[[[-1.0], [-9.0]], [[-9.0], [-1.0]], [[-9.0], [-1.0]]]])
    pool = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5), extras={LOG_PROBS: log_probs})
    rng = np.random.default_rng(0)
    with pytest.warns(LowEffectiveSampleSize, match="weights under these bids"):
        TokenAuction().run(pool, [1.0, 0.0], rng)
    with pytest.warns(LowEffectiveSampleSize):
        assert TokenAuction().check_bids(pool, [1.0, 0.0])[0] == pytest.approx(1, abs=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TokenAuction().check_bids(pool, [0.0, 1.0])[0] == pytest.approx(2, abs=1e-2)
        one = pool.take([0])
        one = ReplyPool.from_arrays(one.ctr[:, :1], extras={LOG_PROBS: log_probs[:, :1]})
        TokenAuction().run(one, [1.0, 0.0], rng)


@pytest.mark.filterwarnings("default::mechanisms.gibbs.LowEffectiveSampleSize")
def test_warns_once_per_pool_also_of_bids_to_try():
    log_probs = np.array([[[[-1.0], [-9.0]], [[-9.0], [-1.0]], [[-9.0], [-1.0]]]])

    def pool():
        return ReplyPool.from_arrays(np.full((1, 3, 2), 0.5), extras={LOG_PROBS: log_probs})

    bids, rng = [1.0, 1.0], np.random.default_rng(0)
    alone, beside = np.array([[[9e9], [1.0]]]), np.array([[[1.0], [1.0]]])
    for first in ("run", "counterfactual"):
        met = pool()
        with pytest.warns(LowEffectiveSampleSize, match="weights under these bids"):
            if first == "run":
                TokenAuction().run(met, [1.0, 0.0], rng)
            else:
                TokenAuction().counterfactual(met, bids, alone)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            TokenAuction().run(met, [1.0, 0.0], rng)
            TokenAuction().counterfactual(met, bids, alone)
            TokenAuction().counterfactual(pool(), bids, beside)


def test_what_other_bids_bring_is_asked_of_the_recording():
    """Live replies to bids of which one is 0 hold nothing of what that bidder would write."""
    assert not TokenAuction.tells_of_other_bids
    assert not make_mechanism("pretrained").tells_of_other_bids
    assert make_mechanism("mosaic", tau=1.0).tells_of_other_bids


def test_refuses():
    with pytest.raises(BadInput, match="reply_symbols is 0; give a finite number > 0"):
        make_mechanism("token", reply_symbols=0)
    bare = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    with pytest.raises(BadInput, match="needs token_log_probs, which these replies lack; record"):
        TokenAuction().allocate(bare, [1.0, 1.0])
    wrong = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5), extras={LOG_PROBS: np.zeros((1, 3, 2))})
    with pytest.raises(BadInput, match=r"token_log_probs has shape \(1, 3, 2\); give \(1, 3, 2, s"):
        TokenAuction().allocate(wrong, [1.0, 1.0])

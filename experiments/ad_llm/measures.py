"""What is seen of replies under bids: revenue, reward, format, satisfaction, LLM tokens.

An Ad-LLM writes one reply per request, and a clicked ad pays its bid. A mechanism over M
candidates shows reply j with probability π_j and charges by its own rule. Both are measured in
expectation over clicks, the second also over π, by the same reward

    R = Σ_i b_i·ctr_i·1{i shown} − λ·s_resp        (`mechanisms.llm_auction.reward`)

Shapes: requests B, bid profiles D of each, candidates M, ads n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from experiments.ad_llm.trials import Trials
from mechanisms.checks import positive
from mechanisms.gibbs import normalised
from mechanisms.llm_auction.compliance import complies
from mechanisms.llm_auction.prompt import shown_bids
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.mosaic import Mosaic
from mechanisms.pool import Floats, ReplyPool

MEASURES = (
    "revenue", "value", "reward", "satisfaction", "ads", "shown", "malformed", "well_formed",
    "compliant", "clicks", "read", "written",
)  # fmt: skip


class _Played(NamedTuple):
    """A pool under bids, a row per (request, profile).

    Attributes:
        rows: (P,) request of the pool.
        bids: (P, n)
        probabilities: (P, M)
        paid: (P,) what the platform is paid, expected.
        read, written: (P,) LLM tokens of serving.
    """

    rows: np.ndarray
    bids: Floats
    probabilities: Floats
    paid: Floats | None
    read: Floats
    written: Floats


def of_writer(pool: ReplyPool, trials: Trials, reward: ResponseReward) -> pl.DataFrame:
    """What replies of a writer to `trials.asked` bring, at first price; a row per profile.

    Columns: `request`, `draw`, and

    - `revenue`: what the platform is paid, expected over clicks, in money;
    - `value`: Σ b·ctr, what advertisers declare the reply to be worth;
    - `reward`: R; `satisfaction`: of the user, 0..1;
    - `ads`: ads shown; `shown`: whether any is; `malformed`: malformed mentions;
    - `well_formed`, `compliant`: whether the reply is, see `mechanisms.llm_auction.compliance`;
    - `clicks`: expected; `read`, `written`: LLM tokens of serving the request.
    """
    P = pool.shape[0]
    read, written = (pool.replies[name].to_numpy().astype(float) for name in ("read", "written"))
    played = _Played(np.arange(P), trials.flat, np.ones((P, 1)), None, read, written)
    return _frame(pool, played, trials, reward)


def of_candidates(
    pool: ReplyPool,
    trials: Trials,
    reward: ResponseReward,
    probabilities: Floats,
    paid: Floats | None,
    prompt_tokens: Floats,
) -> pl.DataFrame:
    """What a rule over candidate replies brings; columns as of `of_writer`.

    All candidates have to be written before one is shown: their tokens count, the prompt once.

    Args:
        pool: M candidates for each request.
        trials: bids.
        reward: R.
        probabilities: (B * D, M) of the replies.
        paid: (B * D,) expected payments; None for first prices.
        prompt_tokens: (B,) length of the prompt under which candidates are written.
    """
    B, M, _ = pool.shape
    D = trials.bids.shape[1]
    written = pool.replies["tokens"].to_numpy().reshape(B, M).sum(axis=1).astype(float)
    rows = np.repeat(np.arange(B), D)
    played = _Played(rows, trials.flat, probabilities, paid, prompt_tokens[rows], written[rows])
    return _frame(pool, played, trials, reward)


def mosaic(
    pool: ReplyPool, trials: Trials, tau: float, offset: bool = True
) -> tuple[Floats, Floats]:
    """Probabilities (B * D, M) and expected payments (B * D,) of MOSAIC at these bids."""
    copies = _copies(pool, trials)
    found = Mosaic(tau, offset=offset).allocate(copies, trials.flat)
    return found.probabilities, found.payments.sum(axis=1)


def ideal(
    pool: ReplyPool,
    trials: Trials,
    reward: ResponseReward,
    tau: float | None,
    money: bool = False,
) -> Floats:
    """(B * D, M) probabilities `π_j ∝ w_j·exp(R_j/tau)`; without tau all on the greatest R_j.

    The rule that training approaches: with the reward of the training, of bids as the Ad-LLM reads
    them (1..100 relative to the highest); tau is the paper's β, in that unit per nat. With `money`,
    of bids as they are, and tau in money per nat as MOSAIC's.
    """
    copies = _copies(pool, trials)
    complete = _complete(pool)[copies.rows]
    bids = trials.flat if money else shown_bids(trials.flat).astype(np.float64)
    rewards = reward(bids, copies.ctr, copies.exposure, copies.malformed, complete)
    if tau is None:
        return (rewards.argmax(axis=1)[:, None] == np.arange(rewards.shape[1])).astype(float)
    positive("tau", tau)
    return normalised(copies.log_weights + rewards / tau)


def _copies(pool: ReplyPool, trials: Trials) -> ReplyPool:
    return pool.take(np.repeat(np.arange(pool.shape[0]), trials.bids.shape[1]))


def _complete(pool: ReplyPool) -> np.ndarray:
    B, M, _ = pool.shape
    return pool.replies["complete"].to_numpy().reshape(B, M)


def _frame(
    pool: ReplyPool, played: _Played, trials: Trials, reward: ResponseReward
) -> pl.DataFrame:
    some = pool.take(played.rows)
    pi = played.probabilities
    ads = some.exposure.sum(axis=2)
    value = np.einsum("pmn,pn->pm", some.ctr, played.bids)
    complete = _complete(pool)[played.rows]
    found = {
        "value": value,
        "reward": reward(played.bids, some.ctr, some.exposure, some.malformed, complete),
        "satisfaction": some.quality,
        "ads": ads,
        "shown": ads > 0,
        "malformed": some.malformed,
        "well_formed": some.malformed == 0,
        "compliant": complies(ads, some.malformed, reward.max_ads),
        "clicks": some.ctr.sum(axis=2),
    }
    expected = {name: (pi * amounts).sum(axis=1) for name, amounts in found.items()}
    paid = expected["value"] if played.paid is None else played.paid
    B, D, _ = trials.bids.shape
    columns = expected | {"revenue": paid, "read": played.read, "written": played.written}
    at = {"request": np.repeat(np.arange(B), D), "draw": np.tile(np.arange(D), B)}
    return pl.DataFrame(at | {name: columns[name] for name in MEASURES})

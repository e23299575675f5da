"""Learners by themselves, against markets whose answers are known on paper."""

import numpy as np

from agents.learners import Feedback, Population, make_learner

R = 2


def people(values=(1.0, 2.0, 0.5), vm=True, roi=1.5, budget=np.inf):
    values = np.array(values, dtype=float)
    full = np.full(values.shape, 1.0)
    return Population(
        values, np.broadcast_to(vm, values.shape).copy(), full * roi, full * np.array(budget)
    )


def learner_of(name, population, seed=0, **parameters):
    return make_learner(name, population, R, np.random.default_rng(seed), **parameters)


def smooth_market(bids, share):
    """Clicks rise with the bid; a click costs `share` of the bid (1 is first price)."""
    clicks = 10 * (0.02 + 0.3 * bids / (bids + 1))
    return clicks, share * bids * clicks


def feedback_of(learner, bids, market, rng=None):
    clicks, payments = market(bids)
    grid_clicks = grid_payments = None
    if learner.grid is not None:
        shape = (R, *learner.grid.shape)
        grid_clicks, grid_payments = (np.broadcast_to(a, shape) for a in market(learner.grid))
    drawn = clicks if rng is None else rng.poisson(clicks).astype(float)
    charges = payments if rng is None else payments / clicks * drawn
    return Feedback(
        drawn, charges, clicks, payments, np.full(bids.shape, 10.0), grid_clicks, grid_payments
    )


def play(learner, market, rounds, rng=None):
    """(rounds, R, N) bids, clicks and payments."""
    history = []
    for _ in range(rounds):
        bids = learner.bids()
        learner.learn(feedback_of(learner, bids, market, rng))
        history.append((bids, *market(bids)))
    return (np.array(part) for part in zip(*history, strict=True))

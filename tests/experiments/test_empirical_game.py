"""Empirical games: known matrix games, and the pool's payoffs."""

import numpy as np
import pytest

from experiments.equilibrium.empirical import (
    LEARNED,
    PENALTY,
    EmpiricalGame,
    Role,
    empirical_game,
    role,
    sinks,
)
from mechanisms.errors import BadInput
from tests.experiments.test_game import small_game


def matrix_game(first, second):
    """An `EmpiricalGame` with payoff tables (S1, S2)."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    S = first.shape
    names = [tuple(f"{k}{s}" for s in range(S[k])) for k in range(2)]
    roles = tuple(Role(f"role {k}", np.array([k]), names[k], np.zeros((2, S[k]))) for k in range(2))
    profiles = np.array(list(np.ndindex(S)))
    deviations = (
        np.array([first[:, t] for _, t in profiles]),
        np.array([second[s, :] for s, _ in profiles]),
    )
    payoffs = np.stack([first.ravel(), second.ravel()], axis=1)
    support = tuple(map(np.ones_like, deviations))
    greatest = tuple(
        (each - payoffs[:, [k]]) / np.abs(payoffs[:, k]).max() for k, each in enumerate(deviations)
    )
    return EmpiricalGame(roles, profiles, payoffs, deviations, support, greatest)


def ends(game):
    return [[tuple(game.profiles[p].tolist()) for p in nodes] for nodes in sinks(game.graph())]


def test_prisoners_dilemma_has_one_pure_equilibrium_and_one_sink():
    game = matrix_game([[3, 0], [5, 1]], [[3, 5], [0, 1]])
    assert ends(game) == [[(1, 1)]]
    assert game.profiles[game.equilibria].tolist() == [[1, 1]]
    (nash,) = game.nash()
    assert nash.pure and nash.payoffs == pytest.approx((1, 1))


def test_matching_pennies_cycles_and_is_played_half_and_half():
    game = matrix_game([[1, -1], [-1, 1]], [[-1, 1], [1, -1]])
    (cycle,) = ends(game)
    assert game.equilibria == []
    assert sorted(cycle) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (nash,) = game.nash()
    assert not nash.pure
    np.testing.assert_allclose(nash.mixtures, 0.5)


def test_battle_of_the_sexes_has_two_sinks_and_three_equilibria():
    game = matrix_game([[2, 0], [0, 1]], [[1, 0], [0, 2]])
    assert ends(game) == [[(0, 0)], [(1, 1)]]
    found = game.nash()
    assert sorted(nash.pure for nash in found) == [False, True, True]
    (mixed,) = (nash for nash in found if not nash.pure)
    np.testing.assert_allclose(mixed.mixtures[0], [2 / 3, 1 / 3])
    np.testing.assert_allclose(mixed.payoffs, 2 / 3)


def test_units_of_money_do_not_matter():
    tables = np.array([[2.0, 0], [0, 1]]), np.array([[1.0, 0], [0, 2]])
    small = matrix_game(*(1e-6 * table for table in tables))
    assert len(small.nash()) == 3 and ends(small) == ends(matrix_game(*tables))


def test_gains_below_the_tolerance_are_no_edges():
    game = matrix_game([[1, 1], [1.0005, 1.0005]], [[1, 1], [1, 1]])
    assert game.graph().number_of_edges() == 0
    assert len(ends(game)) == 4
    assert len(game.equilibria) == 1  # all with the same payoffs, up to the tolerance


def test_what_a_role_gains_on_average_its_members_need_not():
    """At a profile without a gain on average a single member may gain: it is no equilibrium."""
    game = small_game("first-price")
    vm = game.people.value_maximizer
    learned = 0.9 * game.people.truthful_bids
    roles = [role(game, str(k), np.flatnonzero(vm == k), learned) for k in (False, True)]
    found = empirical_game(game, roles, learned, np.random.default_rng(0))
    resting = {nodes[0] for nodes in sinks(found.graph()) if len(nodes) == 1}
    for p in range(len(found.profiles)):
        bids = learned.copy()
        for each, s in zip(roles, found.profiles[p], strict=True):
            bids[each.members] = each.bids[each.members, s]
        gains = [
            worth(game, bids, each.bids[:, s], i) - worth(game, bids, bids, i)
            for each in roles
            for i in each.members
            for s in range(len(each.names))
        ]
        greatest = max(each[p].max() for each in found.greatest)
        assert (greatest <= 1e-9) == (max(gains) <= 1e-9)
    assert set(found.equilibria) <= resting


def worth(game, bids, others, i):
    """What i gets if it plays its bid of `others`."""
    bids = bids.copy()
    bids[i] = others[i]
    value, paid = (x[0, i] for x in game.outcome(bids[None]))
    if not game.people.value_maximizer[i]:
        return value - paid
    return value - PENALTY * max(game.people.target_roi[i] * paid - value, 0)


def test_learned_bids_that_repeat_a_multiple_are_no_strategy_of_their_own():
    game = small_game("mosaic")
    truthful = game.people.truthful_bids
    assert LEARNED not in role(game, "a", [0, 2], 1.0004 * truthful).names
    assert LEARNED in role(game, "a", [0, 2], 1.01 * truthful).names
    mixed = truthful * np.where(np.arange(len(truthful)) == 2, 0.5, 1.0)
    assert LEARNED in role(game, "a", [0, 2], mixed).names


def test_payoffs_are_those_of_the_pool_and_nash_is_an_equilibrium():
    game = small_game("llm-auction-ideal")
    learned = 0.8 * game.people.truthful_bids
    roles = [role(game, "a", [0], learned), role(game, "b", [1], learned)]
    found = empirical_game(game, roles, learned, np.random.default_rng(0))
    assert roles[0].names[-1] == LEARNED and "truthful" in roles[0].names
    for p in (0, 7, len(found.profiles) - 1):
        bids = learned.copy()
        for k in range(2):
            bids[k] = roles[k].bids[k, found.profiles[p, k]]
        value, paid = (x[0] for x in game.outcome(bids[None]))
        owed = max(game.people.target_roi[1] * paid[1] - value[1], 0)
        expected = value[0] - paid[0], value[1] - PENALTY * owed
        np.testing.assert_allclose(found.payoffs[p], expected, atol=1e-12)
    for nash in found.nash():
        shape = tuple(len(each.names) for each in roles)
        tables = [found.payoffs[:, k].reshape(shape) for k in range(2)]
        best = (tables[0] @ nash.mixtures[1]).max(), (nash.mixtures[0] @ tables[1]).max()
        np.testing.assert_allclose(nash.payoffs, best, rtol=1e-6)


def test_truth_is_a_best_strategy_of_utility_maximizers_in_the_role_game_of_mosaic():
    game = small_game("mosaic")
    vm = game.people.value_maximizer
    truthful = game.people.truthful_bids
    roles = [role(game, str(k), np.flatnonzero(vm == k), truthful) for k in (False, True)]
    found = empirical_game(game, roles, truthful, np.random.default_rng(0))
    at = roles[0].names.index("truthful")
    assert (found.deviations[0].argmax(axis=1) == at).all()
    # where the best deviation gains, it does in nearly every resample of the requests
    gains = found.deviations[0][:, at] - found.payoffs[:, 0]
    clear = gains > 0.1 * found.payoffs[:, 0].max()
    assert (found.support[0][clear, at] > 0.95).all()


def test_roles_move_one_member_at_a_time():
    game = small_game("llm-auction-ideal")
    vm = game.people.value_maximizer
    truthful = game.people.truthful_bids
    um = role(game, "um", np.flatnonzero(~vm), truthful)
    found = empirical_game(game, [um], truthful, np.random.default_rng(0))
    start, to = um.names.index("truthful"), um.names.index("0.5×")
    alone = []
    for i in um.members:
        bids = truthful.copy()
        bids[i] = 0.5 * truthful[i]
        value, paid = game.outcome(bids[None])
        alone.append(value[0, i] - paid[0, i])
    np.testing.assert_allclose(found.deviations[0][start, to], np.mean(alone))


def test_bad_input_is_refused(monkeypatch):
    game = small_game()
    truthful = game.people.truthful_bids
    twice = [role(game, "a", [0], truthful), role(game, "b", [0, 2], truthful)]
    with pytest.raises(BadInput, match="two roles"):
        empirical_game(game, twice, truthful, np.random.default_rng(0))
    found = empirical_game(game, twice[1:], truthful, np.random.default_rng(0))
    with pytest.raises(BadInput, match="choose a pair"):
        found.nash()
    monkeypatch.setitem(__import__("sys").modules, "pygambit", None)
    with pytest.raises(BadInput, match=r"admarket\[games\]"):
        matrix_game([[1]], [[1]]).nash()

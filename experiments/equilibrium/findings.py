"""What is found under each mechanism: where learners end, and what else is known of that game."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.learners.registry import check_learner
from experiments.arms import chosen
from experiments.best_response import BestResponse, best_responses
from experiments.equilibrium.empirical import EmpiricalGame, Nash, empirical_game, role
from experiments.equilibrium.externality import Portrait, closest_rivals, crowding_out, portrait
from experiments.equilibrium.mixtures import pure_gains
from experiments.equilibrium.seats import Style
from experiments.equilibrium.solver import STARTS, EquilibriumReport, solve_game
from experiments.game import Game
from experiments.run import population
from market.environment import pools_of, titles
from market.scenario import Scenario
from mechanisms.pool import Bools, Floats

STEP = 0.01  # of a bid, to see whether it stands on a plateau
SCENARIO = "scenario"
"""In place of a learner's name: every advertiser learns as the scenario has it."""
ROLES = {False: "utility maximizers", True: "value maximizers"}


@dataclass(frozen=True, eq=False)
class Finding:
    """All that is found under one mechanism.

    Attributes:
        report: of the learners.
        independent: iterated best response from the truthful bids, by `allocate` alone.
        independent_exploitability: of the bids where it ended.
        roles: the role-symmetric empirical game.
        plateau: (N,) at the fixed bids, 1 % more or less changes nothing for the advertiser.
        stuck: (N,) it does not, yet another bid would gain more than 1 % of the best.
        pair: the matrix game of the two closest rivals; None with a single advertiser.
        nash: its equilibria.
        lost: (N, N) who crowds out whom.
        clicks: (N,) clicks per request.
        portrait: of the two closest rivals; None with a single advertiser.
    """

    report: EquilibriumReport
    independent: BestResponse
    independent_exploitability: float
    roles: EmpiricalGame
    plateau: Bools
    stuck: Bools
    pair: EmpiricalGame | None
    nash: list[Nash]
    lost: Floats
    clicks: Floats
    portrait: Portrait | None


def findings(
    scenario: Scenario,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    learner: str = "hedge",
    mechanisms: Sequence[str] | None = None,
    rounds: int | None = None,
    starts: int = STARTS,
    requests: int | None = None,
    **learner_parameters: Any,
) -> dict[str, Finding]:
    """What `find_equilibrium` writes about, by mechanism; arguments as there."""
    styles = styles_of(scenario, learner, learner_parameters)
    arms, people, found = chosen(scenario, mechanisms), population(scenario), {}
    for arm, pool in zip(arms, pools_of(scenario, arms, say), strict=True):
        say(f"equilibrium: {learner} from {starts} starts under {arm.name}")
        if np.isfinite(people.budget).any():
            say("equilibrium: budgets are left out")
        rng = np.random.default_rng([seed, 41])
        report = solve_game(
            Game(arm, pool, people), styles, rng, rounds=rounds, starts=starts,
            requests=requests, say=say,
        )  # fmt: skip
        found[arm.name] = study(report, rng)
    return found


def styles_of(scenario: Scenario, learner: str, parameters: Mapping[str, Any]) -> list[Style]:
    """How each advertiser learns: all by `learner`, or as the scenario has it."""
    if learner == SCENARIO:
        return [Style(s.learner.name, dict(s.learner.parameters)) for s in scenario.advertisers]
    check_learner(learner, dict(parameters))
    return [Style(learner, dict(parameters))] * scenario.num_advertisers


def study(report: EquilibriumReport, rng: np.random.Generator) -> Finding:
    """Everything about the fixed bids that a report found."""
    game, bids = report.game, report.fixed_bids
    vm = game.people.value_maximizer
    lost, clicks = crowding_out(game, bids)
    kinds = [kind for kind in (False, True) if (vm == kind).any()]
    by_kind = [role(game, ROLES[kind], np.flatnonzero(vm == kind), bids) for kind in kinds]
    names = titles(game.pool)
    pair, nash, drawn = None, [], None
    if len(bids) > 1:
        rivals = closest_rivals(lost, clicks * game.people.values, vm)
        pair = empirical_game(game, [role(game, names[i], [i], bids) for i in rivals], bids, rng)
        nash = pair.nash()
        drawn = portrait(report, rivals)
    flat = plateaus(game, bids)
    independent = best_responses(game.mechanism, game.pool, game.people)
    return Finding(
        report=report,
        independent=independent,
        independent_exploitability=float(game.gains(independent.bids[None]).exploitability[0]),
        roles=empirical_game(game, by_kind, bids, rng),
        plateau=flat,
        stuck=flat & (pure_gains(game, bids).relative_loss > STEP),
        pair=pair,
        nash=nash,
        lost=lost,
        clicks=clicks,
        portrait=drawn,
    )


def plateaus(game: Game, bids: Floats) -> Bools:
    """(N,) whose clicks and payments are the same at bids 1 % lower and higher.

    Slot auctions are flat between the rivals' bids, but for the bid paid at first price: learners
    that go by slopes, or by what little they gain, rest there wherever they began.
    """
    near = bids[:, None] * (1 + STEP * np.array([-1, 0, 1]))
    return np.all([np.ptp(x[0], axis=1) == 0 for x in game.curves(bids[None], near)], axis=0)

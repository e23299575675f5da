"""The empirical game: few strategies, payoffs from the pool, equilibria and deviation graphs.

A role is a set of advertisers that play the same strategy; a strategy is a multiple of everyone's
own truthful bid, or the bid that it learned. A profile gives every role a strategy, and

    payoff       of a role: mean over its members of what a member gets at the profile,
    deviation    to s': mean over its members of what a member gets if it *alone* plays s'.

With one advertiser a role, the others at their learned bids, that is an ordinary matrix game, whose
Nash equilibria pygambit finds. With all utility maximizers in one role and all value maximizers in
another it is the role-symmetric reduced game (Wellman 2006): its deviations are single advertisers'
all the same, no role moves together. What a member gets is value less payment, or, for a value
maximizer, its value less `PENALTY` times what it owes to its target ROI, `tau_roi·p − v·x` where
that is positive: an exact penalty wherever a unit owed buys less than `PENALTY` units of value.

The deviation graph has a node for each profile and an edge for each deviation that gains more than
`TOLERANCE` of the role's greatest payoff. Its sink components are what better replies end in: at
one node nobody gains on average over a role's members, several nodes are a cycle. That is not yet
an equilibrium among these strategies: single members may gain what others would lose. `equilibria`
are the nodes at which no member gains more than `TOLERANCE` of its own greatest payoff.

Payoffs are exact expectations over the pool's requests. Requests themselves are a sample: the
`support` of an edge is the share of bootstrap resamples of the requests in which it gains.

Shapes: profiles P, requests B, roles K, advertisers N, strategies S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from experiments.game import Game
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints

if TYPE_CHECKING:
    import networkx as nx

TOLERANCE = 1e-3  # of the role's greatest payoff
PENALTY = 10.0
RESAMPLES = 400
LEARNED = "learned"
MULTIPLES = {False: (0.25, 0.5, 0.75, 1.0, 1.5), True: (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)}
"""Strategies by whether the role's members are value maximizers; `learned` is one more."""


@dataclass(frozen=True, eq=False)
class Role:
    """Advertisers that play the same strategy.

    Attributes:
        name: for figures.
        members: their numbers.
        names: (S) names of its strategies.
        bids: (N, S) bid of each advertiser at each strategy; only members' rows count.
    """

    name: str
    members: Ints
    names: tuple[str, ...]
    bids: Floats


@dataclass(frozen=True, eq=False)
class Nash:
    """An equilibrium of a matrix game: each role's mixture over its strategies, and payoffs."""

    mixtures: tuple[Floats, ...]
    payoffs: tuple[float, ...]

    @property
    def pure(self) -> bool:
        """Whether nobody randomises."""
        return all(mixture.max() > 1 - 1e-9 for mixture in self.mixtures)


@dataclass(frozen=True, eq=False)
class EmpiricalGame:
    """Payoffs of few strategies; see the module.

    Attributes:
        roles: (K) the roles.
        profiles: (P, K) number of each role's strategy.
        payoffs: (P, K) mean payoff of a role's members.
        deviations: (K) arrays (P, S_k): mean payoff of a single member that deviates to s.
        support: (K) arrays (P, S_k): share of resamples in which the deviation gains.
        greatest: (K) arrays (P, S_k): most that any single member gains by the deviation, as a
            fraction of its own greatest payoff.
    """

    roles: tuple[Role, ...]
    profiles: Ints
    payoffs: Floats
    deviations: tuple[Floats, ...]
    support: tuple[Floats, ...]
    greatest: tuple[Floats, ...]

    @property
    def equilibria(self) -> list[int]:
        """Profiles that no single member gains by leaving for another of these strategies.

        Of those with equal payoffs of all roles, the first.
        """
        gains = np.max([each.max(axis=1) for each in self.greatest], axis=0)
        found: list[int] = []
        for p in np.flatnonzero(gains <= TOLERANCE):
            apart = np.abs(self.payoffs[found] - self.payoffs[p])
            if not (apart <= self.tolerance).all(axis=1).any():
                found.append(int(p))
        return found

    @property
    def tolerance(self) -> Floats:
        """(K,) gains that count as none."""
        return TOLERANCE * np.maximum(self.payoffs.max(axis=0), np.finfo(float).tiny)

    def label(self, profile: int) -> str:
        """The strategies of a profile, in a line."""
        names = (r.names[s] for r, s in zip(self.roles, self.profiles[profile], strict=True))
        return ", ".join(names)

    def graph(self) -> nx.DiGraph:
        """The deviation graph: nodes are profiles; edges have role, gain and support.

        `best` marks the deviation that gains a role most. Nodes of a sink component have
        `sink`, the number of that component, others None.
        """
        import networkx as nx

        number = {tuple(profile): p for p, profile in enumerate(self.profiles.tolist())}
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(self.profiles)), sink=None)
        for p, k in product(range(len(self.profiles)), range(len(self.roles))):
            gains = self.deviations[k][p] - self.payoffs[p, k]
            for s in np.flatnonzero(gains > self.tolerance[k]):
                target = self.profiles[p].copy()
                target[k] = s
                graph.add_edge(
                    p,
                    number[tuple(target.tolist())],
                    role=k,
                    gain=float(gains[s]),
                    best=bool(s == gains.argmax()),
                    support=float(self.support[k][p, s]),
                )
        for number_of, nodes in enumerate(sinks(graph)):
            for node in nodes:
                graph.nodes[node]["sink"] = number_of
        return graph

    def nash(self) -> list[Nash]:
        """All Nash equilibria (of a degenerate game, the extreme ones), for two roles of one.

        Raises:
            BadInput: another number of roles or members, or pygambit is not installed.
        """
        if [len(role.members) for role in self.roles] != [1, 1]:
            raise BadInput("Nash equilibria are computed for two advertisers; choose a pair")
        pygambit = nash_solver()
        shape = tuple(len(role.names) for role in self.roles)
        tables = [self.payoffs[:, k].reshape(shape) for k in range(2)]
        # payoffs of any unit, as floats of about 1, which is what tolerances there are made for
        scales = [max(float(np.abs(table).max()), np.finfo(float).tiny) for table in tables]
        game = pygambit.Game.from_arrays(
            *(table / scale for table, scale in zip(tables, scales, strict=True))
        )
        found = []
        for profile in pygambit.nash.enummixed_solve(game, rational=False).equilibria:
            mixtures = tuple(
                np.array([float(profile[strategy]) for strategy in player.strategies])
                for player in game.players
            )
            paid = tuple(float(mixtures[0] @ table @ mixtures[1]) for table in tables)
            found.append(Nash(mixtures, paid))
        return found


def nash_solver() -> ModuleType:
    """The package pygambit.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import pygambit
    except ImportError:
        raise BadInput('Nash equilibria need pygambit; pip install "admarket[games]"') from None
    return pygambit


def sinks(graph: nx.DiGraph) -> list[list[int]]:
    """Strongly connected components that no edge leaves, smallest first."""
    import networkx as nx

    whole = nx.condensation(graph)
    ends = [whole.nodes[c]["members"] for c in whole if whole.out_degree(c) == 0]
    return sorted((sorted(nodes) for nodes in ends), key=lambda nodes: (len(nodes), nodes))


def role(game: Game, name: str, members: Sequence[int], learned: Floats) -> Role:
    """A role of `members`, all with the same objective, with the usual strategies.

    Args:
        game: whose truthful bids are multiplied.
        name: of the role.
        members: at least one.
        learned: (N,) bids that the strategy `learned` plays; left out where all members' are within
            `TOLERANCE` of the same multiple, which it would only repeat.
    """
    who = np.array(members)
    multiples = MULTIPLES[bool(game.people.value_maximizer[who[0]])]
    names = tuple("truthful" if m == 1 else f"{m:g}×" for m in multiples)
    truthful = game.people.truthful_bids
    bids = truthful[:, None] * np.array(multiples)
    apart = np.abs(bids - learned[:, None])[who] / truthful[who, None]
    if apart.max(axis=0).min() > TOLERANCE:
        names, bids = (*names, LEARNED), np.concatenate([bids, learned[:, None]], axis=1)
    return Role(name, who, names, bids)


def empirical_game(
    game: Game, roles: Sequence[Role], bids: Floats, rng: np.random.Generator
) -> EmpiricalGame:
    """Compute all payoffs and deviations, and bootstrap them over requests.

    Args:
        game: any.
        roles: who plays what; nobody in two of them.
        bids: (N,) of those in no role.
        rng: of the resamples.
    """
    if len(set(np.concatenate([r.members for r in roles]).tolist())) < sum(
        len(r.members) for r in roles
    ):
        raise BadInput("an advertiser is in two roles; give each one")
    sizes = [len(role.names) for role in roles]
    profiles = np.array(list(product(*map(range, sizes))))
    played = np.tile(bids, (len(profiles), 1))
    tried = np.zeros((len(bids), max(sizes)))
    for k, each in enumerate(roles):
        played[:, each.members] = each.bids[each.members][:, profiles[:, k]].T
        tried[each.members, : sizes[k]] = each.bids[each.members]
    value, payment = _by_request(game, played, tried)
    B = value.shape[1]
    counts = rng.multinomial(B, np.full(B, 1 / B), size=RESAMPLES) / B
    exact = _worth(game, value.mean(axis=1), payment.mean(axis=1))
    payoffs = np.empty(profiles.shape)
    deviations, support, greatest = [], [], []
    for k, each in enumerate(roles):
        mine = profiles[:, k][:, None]
        members, S = each.members, sizes[k]
        single = exact[:, members, :S]
        at_present = np.take_along_axis(single, mine[:, :, None], axis=2)
        scale = np.maximum(single.max(axis=(0, 2)), np.finfo(float).tiny)
        greatest.append(((single - at_present) / scale[:, None]).max(axis=1))
        found = single.mean(axis=1)
        payoffs[:, k] = np.take_along_axis(found, mine, axis=1)[:, 0]
        deviations.append(found)
        gains = np.zeros(found.shape)
        for count in counts:  # one by one: all at once would be large
            again = _worth(
                game,
                *(np.tensordot(count, x[:, :, members, :S], (0, 1)) for x in (value, payment)),
                members,
            ).mean(axis=1)
            gains += again > np.take_along_axis(again, mine, axis=1)
        support.append(gains / RESAMPLES)
    return EmpiricalGame(
        tuple(roles), profiles, payoffs, tuple(deviations), tuple(support), tuple(greatest)
    )


def _by_request(game: Game, profiles: Floats, tried: Floats) -> tuple[Floats, Floats]:
    """(P, B, N, S) value and payment by request, of each advertiser at each of its bids `tried`."""
    pool, (P, N) = game.pool, profiles.shape
    B, S = pool.shape[0], tried.shape[1]
    found = np.zeros((2, P, B, N, S))
    requests = np.arange(B)[:, None]
    for p, bids in enumerate(profiles):
        clicks, payments = game.mechanism.counterfactual(pool, bids, tried[pool.ads])
        # an advertiser is listed once a request
        found[0, p, requests, pool.ads] = game.people.values[pool.ads][:, :, None] * clicks
        found[1, p, requests, pool.ads] = payments
    return found[0], found[1]


def _worth(game: Game, value: Floats, payment: Floats, members: Ints | None = None) -> Floats:
    """(P, n, S) what a member gets; see the module."""
    who = np.arange(value.shape[1]) if members is None else members
    vm = game.people.value_maximizer[who][:, None]
    owed = np.maximum(game.people.target_roi[who][:, None] * payment - value, 0.0)
    return value - np.where(vm, PENALTY * owed, payment)

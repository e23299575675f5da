"""MarketModel: advertisers, a platform and a stream of requests, round after round, R times over.

A round serves `requests_per_round` requests in each of R replications, drawn uniformly with
replacement from the pool. Everything random comes from `seed`, by purpose and round: requests, dice
(which reply is shown, who clicks), and each learner. Requests and dice of a round do not depend on
what mechanisms or learners did before, so runs under different mechanisms at the same seed share
them (common random numbers; `agents.streams`).

Budgets are hard. The round that exhausts an advertiser's budget is served as bid, but the platform
charges no more than what is left and forgives the rest; from the next round on the advertiser bids
0 in that replication. Spending therefore never exceeds the budget. Expected payments are recorded
as the mechanism states them, uncapped.

Some mechanisms read bids once in a *period* of rounds (`mechanisms.periods`). Then advertisers bid
in its first round only, and it is one round to their learners: they hear of it when it is over, in
means over its rounds, of what came of the bids that were read. (Were they to learn round by round,
those that move their bids by what the last ones brought would follow one bid's outcome many times
over.) Along their grids they hear what the period would have been, had it been planned under
another bid. A budget that runs out within a period is charged no further, but the terms stand: the
advertiser bids 0 from the next period on. Other mechanisms have periods of one round.

Who bids 0 stays a candidate: a reply may show its ad all the same, for nothing, since the LLM wrote
it and no bid speaks against it. Clicks on it count as the advertiser's value, hence towards its ROI
and in welfare, long after its budget is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mesa
import numpy as np
from tqdm import tqdm

from agents import Account, Advertiser, Platform, UtilityMaximizer, ValueMaximizer, make_learner
from agents.learners import Population
from agents.platform import LiveSource
from agents.streams import LEARNING, Arrivals, Dice, stream
from agents.tally import Period, Tally
from market.collector import RoundCollector
from market.groups import Group
from market.ledger import Ledger, Result
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput, at
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.registry import make_mechanism

KINDS: dict[str, type[Advertiser]] = {
    kind.kind: kind for kind in (UtilityMaximizer, ValueMaximizer)
}


class MarketModel(mesa.Model):
    """A market; one `step` is one round.

    Args:
        scenario: describes it: rounds, requests_per_round, replications, mechanism, advertisers.
        seed: of everything random; equal seeds give equal results.
        pool: candidate replies; default the scenario's, written as the mechanism needs them.
        live: where replies are written anew in every round. By default the scenario says, if the
            pool is left to it; a pool that is given is traded on as it is.
        mechanism: default the scenario's.
        titles: (N,) titles of the ads; default the specs' `title`, else "Ad i".
        label: what results call the run; default the mechanism's name.
        collect_every: collect Mesa reporters every so many rounds, and in the last; 0 for the last
            only. The ledger records every round in any case.

    Attributes:
        round: rounds played.
        bids: (R, N) of the current round.
        account: (R, N) realised sums since the start.
        arrivals, dice: what chance decides, by round.
        ledger: the records.
        datacollector: Mesa's; means over replications. Entry k is round k, so that `mesa.batch_run`
            reports whole rounds. Give it `max_steps >= rounds`, the scenario inside a list, and a
            list of seeds: its `iterations` would repeat the same one.

    Raises:
        BadInput: no advertisers, or another number than the pool has; an unknown objective,
            mechanism, learner or parameter.

    >>> from market import Scenario
    >>> scenario = Scenario.from_yaml("synthetic").with_(rounds=3, replications=2)
    >>> result = MarketModel(scenario, seed=0).run()
    >>> result.rounds.height, result.advertisers.height
    (6, 48)
    """

    def __init__(
        self,
        scenario: Any,
        seed: int = 0,
        *,
        pool: ReplyPool | None = None,
        live: LiveSource | None = None,
        mechanism: Mechanism | None = None,
        titles: Sequence[str] | None = None,
        label: str | None = None,
        collect_every: int = 0,
    ) -> None:
        super().__init__(rng=seed)
        self.scenario = scenario
        self.seed = seed
        self.collect_every = collect_every
        self.round = 0
        if mechanism is None:
            wanted = scenario.mechanism
            mechanism = make_mechanism(wanted.name, **dict(wanted.parameters))
        if pool is None:
            pool, live = scenario.replies_for(mechanism, seed)
        specs = list(scenario.advertisers)
        if not specs or len(specs) != pool.num_advertisers:
            raise BadInput(
                f"the scenario has {len(specs)} advertisers and the pool {pool.num_advertisers}; "
                "give one spec for each advertiser of the pool"
            )
        R, N = scenario.replications, len(specs)
        self.values = np.array([spec.value for spec in specs], dtype=np.float64)
        self.budgets = np.array([np.inf if s.budget is None else s.budget for s in specs], float)
        self.budgeted = bool(np.isfinite(self.budgets).any())
        # Charging exactly what is left may miss the budget by a rounding error.
        self._least_left = np.where(np.isfinite(self.budgets), 1e-12 * self.budgets, -np.inf)
        self.bids = np.zeros((R, N))
        self.account = Account.open(self.values, R)
        self.groups = self._form_groups(specs)
        self._create_advertisers(specs, titles)
        self.platform = Platform(self, mechanism, pool, live, seed)
        self._period = Period()
        served = (R, scenario.requests_per_round)
        self.arrivals = Arrivals(seed, pool.shape[0], served)
        self.dice = Dice(seed, R * scenario.requests_per_round, pool.shape[2])
        self.ledger = Ledger(
            label or mechanism.name,
            self.advertisers,
            R,
            scenario.requests_per_round,
            getattr(mechanism, "tau", np.nan),
        )
        self.datacollector = RoundCollector()
        # Mesa numbers agents by a class-wide table that would keep this model alive for ever.
        getattr(mesa.Agent, "_ids", {}).pop(self, None)

    def step(self) -> None:
        """Requests arrive, advertisers bid, the platform serves, all settle, learn and record."""
        if self.round >= self.scenario.rounds:
            raise RuntimeError(f"all {self.scenario.rounds} rounds are played")
        requests = self.requests_arrive()
        if self.platform.reads_bids(self.round):
            self.advertisers_bid()
        tally = self.platform.serve(requests, self.bids, self.dice, self.round, self._tried)
        self.settle(tally)
        self.learners_learn(tally)
        self.record(tally)

    def run(
        self,
        rounds: int | None = None,
        progress: bool = False,
        after_round: Callable[[], None] | None = None,
    ) -> Result:
        """Play `rounds` more rounds (default: all that are left) and return all records.

        Args:
            rounds: at most as many as are left are played.
            progress: show a progress bar, on a terminal only.
            after_round: called after every round, such as `market.checkpoint.Checkpoints`.
        """
        left = self.scenario.rounds - self.round
        count = left if rounds is None else min(rounds, left)
        for _ in tqdm(range(count), unit="round", disable=None if progress else True):
            self.step()
            if after_round is not None:
                after_round()
        return self.ledger.result()

    def snapshot(self, since: int = 0) -> dict[str, Any]:
        """All that a market made alike needs to go on from here, and to end with the same bytes.

        Requests and dice belong to a seed and a round, and mechanisms keep nothing between rounds,
        so that neither is in it. It is plain data (`agents.snapshots`) and a copy, but for the
        replies of live mode, which are frames.

        Args:
            since: `records` are of the rounds from this one on; those before are kept elsewhere.

        Raises:
            BadInput: a learner that keeps what a snapshot cannot hold.
            Unbalanced: naming the round, if records do not add up.
        """
        live = self.platform.live
        return {
            "round": self.round,
            "steps": self.steps,
            "bids": self.bids.copy(),
            "account": self.account.totals.copy(),
            "learners": [group.learner.snapshot() for group in self._groups],
            "period": self._period.snapshot(),
            "platform": self.platform.snapshot(),
            "live": None if live is None else live.snapshot(),
            "collected": self.datacollector.snapshot(),
            "chance": [self.rng.bit_generator.state, self.random.getstate()],
            "records": {
                "rounds": [self.ledger.rows(since)],
                "plans": [plan for plan in self.platform.plans if plan["round"] >= since],
                "replies": [] if live is None else [live.table(since)],
            },
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` with all `records`, whose parts may come from any iterable.

        Raises:
            BadInput: a snapshot of a market of another size, or with other learners.
        """
        there, here = snapshot["bids"].shape, self.bids.shape
        if there != here or len(snapshot["learners"]) != len(self._groups):
            raise BadInput(
                f"the snapshot is of another market, bids {there} instead of {here}; make the "
                "market as it was made then"
            )
        for group, learner in zip(self._groups, snapshot["learners"], strict=True):
            group.learner.restore(learner)
        self.round, self.steps = snapshot["round"], snapshot["steps"]
        self.running = self.round < self.scenario.rounds
        # in place: advertisers have views on both
        self.bids[:] = snapshot["bids"]
        self.account.totals[:] = snapshot["account"]
        records = snapshot["records"]
        self.ledger.restore(records["rounds"])
        self._period.restore(snapshot["period"])
        self.platform.restore(snapshot["platform"], records["plans"], self.round)
        if self.platform.live is not None:
            self.platform.live.restore(snapshot["live"], records["replies"])
        self.datacollector.restore(snapshot["collected"])
        self.rng.bit_generator.state, state = snapshot["chance"]
        self.random.setstate(state)

    def requests_arrive(self) -> Ints:
        """(R, B) pool indices of the round's requests."""
        return self.arrivals.of(self.round)

    def advertisers_bid(self) -> None:
        """Ask every learner for bids; whoever has nothing left to spend bids 0."""
        with at(f"round {self.round}"):
            for group in self._groups:
                self.bids[:, group.members] = group.bids()
        if self.budgeted:
            self.bids[self.left_to_spend() <= 0] = 0.0

    def settle(self, tally: Tally) -> None:
        """Cap charges at what is left of budgets, forgive the rest, and book the round."""
        if self.budgeted:
            left = self.left_to_spend()
            forgiven = np.maximum(tally.charges - left, 0.0).sum(axis=1)
            np.minimum(tally.charges, left, out=tally.charges)
            tally.charged[:] -= forgiven / self.scenario.requests_per_round
        self.account.settle(tally)

    def learners_learn(self, tally: Tally) -> None:
        """Give every learner what it may see of the round, or of a period that ends with it."""
        if self.platform.period > 1:
            self._period.add(tally)
            if not self.period_ends:
                return
            tally = self._period.close()
        for group in self._groups:
            if group.learner.feedback != "none":
                group.learner.learn(group.feedback(tally))

    def record(self, tally: Tally) -> None:
        """Write the round into the ledger, count it, and collect if it is due."""
        self.ledger.record(self.bids, tally)
        self.round += 1
        self.running = self.round < self.scenario.rounds
        due = self.collect_every and (self.round - 1) % self.collect_every == 0
        if due or not self.running:
            self.datacollector.collect_round(self)

    def left_to_spend(self) -> Floats:
        """(R, N) budget less charges so far; infinite without a budget."""
        left = self.budgets - self.account.payments
        return np.where(left > self._least_left, left, 0.0)

    @property
    def period_ends(self) -> bool:
        """Whether the present round is the last of its period, or of the run."""
        following = self.round + 1
        return self.platform.reads_bids(following) or following >= self.scenario.rounds

    @property
    def groups(self) -> list[Group]:
        """The advertisers by learner; the learners' grids are read when they are set."""
        return self._groups

    @groups.setter
    def groups(self, groups: list[Group]) -> None:
        self._groups = groups
        self._tried = self._bids_to_try()

    @property
    def advertisers(self) -> list[Advertiser]:
        """The advertisers by index."""
        return self._advertisers

    def _form_groups(self, specs: Sequence[Any]) -> list[Group]:
        """One learner for all advertisers with the same learner and parameters."""
        members: dict[str, list[int]] = {}
        for i, spec in enumerate(specs):
            if spec.objective not in KINDS:
                raise BadInput(
                    f"advertiser {i} has objective {spec.objective!r}; choose {' or '.join(KINDS)}"
                )
            key = [spec.learner.name, dict(spec.learner.parameters)]
            members.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(i)
        groups = []
        for number, index in enumerate(members.values()):
            ours = [specs[i] for i in index]
            population = Population(
                values=self.values[index],
                value_maximizer=np.array([spec.objective == "value" for spec in ours]),
                target_roi=np.array([spec.target_roi or 1.0 for spec in ours], dtype=np.float64),
                budget=self.budgets[index] / self.scenario.rounds,
            )
            learner = make_learner(
                ours[0].learner.name,
                population,
                self.scenario.replications,
                stream(self.seed, LEARNING, number),
                **dict(ours[0].learner.parameters),
            )
            groups.append(Group(np.array(index), learner, len(index) == len(specs)))
        return groups

    def _create_advertisers(self, specs: Sequence[Any], titles: Sequence[str] | None) -> None:
        learner_of = {int(i): group.learner for group in self.groups for i in group.index}
        self._advertisers = []
        for i, spec in enumerate(specs):
            title = titles[i] if titles is not None else getattr(spec, "title", None)
            self._advertisers.append(
                KINDS[spec.objective](
                    self,
                    index=i,
                    title=title or f"Ad {i}",
                    value=float(spec.value),
                    target_roi=float(spec.target_roi or 1.0),
                    budget=float(self.budgets[i]),
                    learner=learner_of[i],
                    account=self.account.of(i),
                    bid=self.bids[:, i],
                )
            )

    def _bids_to_try(self) -> Floats | None:
        """(N, G) grids of all learners, side by side; None if none has a grid.

        Shorter grids repeat their last bid, and advertisers whose learner has no grid bid 0.
        """
        grids = [(g, g.learner.grid) for g in self._groups if g.learner.grid is not None]
        if not grids:
            return None
        tried = np.zeros((len(self.values), max(grid.shape[1] for _, grid in grids)))
        for group, grid in grids:
            width = grid.shape[1]
            tried[group.members, :width] = grid
            tried[group.members, width:] = grid[:, -1:]
        return tried

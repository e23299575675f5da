"""Replicate populations that share their dice over all cells of a comparison.

A draw gives every advertiser i a value per click v_i, a target ROI τ_i and a place in a random
order, each from the ranges of the scenario's groups. The share s of value maximizers decides who of
them has an ROI target: the first `s N` in the order, to the nearest whole advertiser. So
an advertiser has the same value and target in every cell, whoever is a value maximizer at one share
is one at every greater share, and cells differ by what is compared alone (common random numbers).
Budgets are left out: the auction is compared as a game in fixed bids, which knows of none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.learners.base import Population
from experiments.parallel import stream
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints


@dataclass(frozen=True, eq=False)
class Populations:
    """D draws of the private types of N advertisers.

    Attributes:
        values: (D, N) value per click.
        target_roi: (D, N) target ROI, of those who turn out to be value maximizers.
        place: (D, N) place in the order in which advertisers become value maximizers, from 0.
    """

    values: Floats
    target_roi: Floats
    place: Ints

    @classmethod
    def drawn(cls, scenario: Scenario, draws: int, seed: int) -> Populations:
        """Draw them from the scenario's groups: values from all, by size, targets from its value
        maximizers' (1 for everybody where the scenario has none).

        Draw d is the same however many there are.
        """
        if draws < 1:
            raise BadInput(f"draws is {draws}; give at least 1")
        members = [group for group in scenario.population for _ in range(group.count)]
        ranges = np.array([group.value for group in members])
        targets = np.array([g.target_roi for g in members if g.objective == "value"] or [(1, 1)])
        N = len(members)
        values, rois, places = [], [], []
        for draw in range(draws):
            rng = stream(seed, "population", draw)
            values.append(rng.uniform(*ranges[rng.permutation(N)].T))
            rois.append(rng.uniform(*targets[rng.integers(len(targets), size=N)].T))
            places.append(rng.permutation(N))
        return cls(np.array(values), np.array(rois), np.array(places))

    def population(self, draw: int, share: float) -> Population:
        """The advertisers of a draw, a `share` of whom maximise value; without budgets."""
        N = self.values.shape[1]
        vm = self.place[draw] < np.floor(share * N + 0.5)
        return Population(
            values=self.values[draw],
            value_maximizer=vm,
            target_roi=np.where(vm, self.target_roi[draw], 1.0),
            budget=np.full(N, np.inf),
        )

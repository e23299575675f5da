"""Mesa's data collector, for a market: means over replications, by round."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import mesa
import numpy as np

if TYPE_CHECKING:
    from market.model import MarketModel


class RoundCollector(mesa.DataCollector):
    """Mesa's collector of a market, with entry k for round k in both model and agent records.

    Mesa indexes model variables by list position and agents by `model.steps`, which is one more;
    `batch_run` reads both by the same index. Rounds not collected hold None.
    """

    def __init__(self) -> None:
        measures = ("revenue", "welfare", "user_satisfaction", "ads_per_reply")
        amounts = ("bid", "bid_over_value", "utility", "spend", "roi")
        super().__init__(
            model_reporters={name: partial(_market_mean, name=name) for name in measures},
            agent_reporters={name: partial(_advertiser_mean, name=name) for name in amounts},
        )

    def snapshot(self) -> dict[str, Any]:
        """What was collected so far."""
        return copy.deepcopy({"model": self.model_vars, "agents": self._agent_records})

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`."""
        kept = copy.deepcopy(dict(snapshot))
        self.model_vars, self._agent_records = kept["model"], kept["agents"]

    def collect_round(self, model: MarketModel) -> None:
        """Collect the round just played."""
        for collected in self.model_vars.values():
            collected.extend([None] * (model.round - 1 - len(collected)))
        self.collect(model)
        self._agent_records[model.round - 1] = self._agent_records.pop(model.steps)


def _market_mean(model: MarketModel, name: str) -> float:
    """Mean over replications of a column of `rounds`, last round."""
    return float(model.ledger.latest(name).mean())


def _advertiser_mean(agent: mesa.Agent, name: str) -> float | None:
    """Mean over replications; None for the platform, and for ROI before anything is paid."""
    amounts = getattr(agent, name, None)
    known = None if amounts is None else amounts[np.isfinite(amounts)]
    return None if known is None or not known.size else float(known.mean())

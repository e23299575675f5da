"""Best responses in the scenario's market, whose replies the Ad-LLM on trial has written."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from experiments.best_response import NEVER_SHOWN, best_responses
from experiments.run import population
from market.environment import pools_of
from market.scenario import Scenario
from mechanisms.llm_auction.mechanism import LLMAuction

OPEN = ("flat", "ROI target does not bind")
"""Notes of best bids that the objective leaves open."""


def market_responses(
    scenario: Scenario, ad_llm: str, say: Callable[[str], None] = lambda _: None
) -> pl.DataFrame:
    """Iterated best responses of all advertisers under `llm-auction`, on its response surface.

    Args:
        scenario: its requests and advertisers, and how `llm-auction` reads recorded replies.
        ad_llm: name or folder of the Ad-LLM.
        say: told what is going on; replies are recorded where nobody has yet.

    Returns:
        `experiments.best_response.BestResponse.labelled`, a row per advertiser, and `determined`:
        it is shown, and its objective leaves its best bid not open.
    """
    asked = scenario.mechanism
    given = asked.parameters if asked.name == LLMAuction.name else {}
    mechanism = LLMAuction(**{**given, "ad_llm": ad_llm})
    (pool,) = pools_of(scenario, [mechanism], say)
    say("best responses in the market")
    found = best_responses(mechanism, pool, population(scenario)).labelled(mechanism.name)
    settled = [~pl.col("note").str.contains(words, literal=True) for words in (NEVER_SHOWN, *OPEN)]
    return found.with_columns(determined=pl.all_horizontal(settled))

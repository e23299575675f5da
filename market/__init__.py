"""Where advertisers and a platform meet: catalog, scenario, model, ledger."""

from market.catalog import Catalog
from market.model import MarketModel
from market.result import Result
from market.scenario import Scenario

__all__ = ["Catalog", "MarketModel", "Result", "Scenario"]

"""What is measured of a mechanism's run: its names, units and meaning, wherever it is told.

Reports, comparisons of runs, figures and the dashboard read this one table. Names are those of
`Result.summary` and of the frames in `experiments.tables`.
"""

from __future__ import annotations

from dataclasses import dataclass

MONEY = "money per request"
OBJECTIVES = {"utility": "Utility maximizers", "value": "Value maximizers"}
"""Who has an objective, by its name."""
BIDS = {"utility": "bid_over_value", "value": "bid_over_truthful"}
"""By objective, the bid over the truthful one in `Result.summary`; `MEASURES` has `bid_utility`
and `bid_value`."""


@dataclass(frozen=True)
class Measure:
    """How a number is called and read.

    Attributes:
        label: what it is.
        unit: of what, or in what, it is.
        kind: "expected" under the mechanism's allocation, or "realised", with the dice thrown;
            empty for what is neither.
        meaning: where label and unit do not say it.
        share: it is a fraction, told in per cent.
    """

    label: str
    unit: str
    kind: str = ""
    meaning: str = ""
    share: bool = False

    @property
    def detail(self) -> str:
        """All but the label, in a line."""
        unit = ", ".join(filter(None, (self.unit, self.kind)))
        return ": ".join(filter(None, (unit, self.meaning)))


MEASURES = {
    "revenue": Measure("Revenue", MONEY, "realised"),
    "welfare": Measure(
        "Welfare", MONEY, "expected", "value of clicks to advertisers + user satisfaction"
    ),
    "regularised_welfare": Measure(
        "Regularised welfare", MONEY, "expected", "welfare − tau × distance from the reference LLM"
    ),
    "user_satisfaction": Measure("User satisfaction", "on a scale of 0 to 1", "expected"),
    "ads_per_reply": Measure("Ads", "per reply", "expected"),
    "clicks": Measure("Clicks", "per request", "realised"),
    "kl": Measure("Distance from the reference LLM", "KL, nats per reply"),
    "paid_share": Measure(
        "Paid by advertisers", "of the value they attain", "expected", share=True
    ),
    "bid_utility": Measure("Utility maximizers' bid", "bid / value", meaning="truthful is 1"),
    "bid_value": Measure(
        "Value maximizers' bid", "bid × target ROI / value", meaning="truthful is 1"
    ),
    "roi_over_target": Measure("Value maximizers' ROI", "ROI / target ROI", "expected"),
    "movement": Measure("Mean bids moved", "third quarter to last, of truthful", share=True),
    "swing": Measure("Bids swing", "within the last quarter, of truthful", share=True),
    "exploitability": Measure(
        "Exploitability", "gains by other fixed bids, of the value attained", share=True
    ),
    "regret": Measure(
        "Regret of play", "gains by one bid in all rounds, of the value attained", share=True
    ),
}

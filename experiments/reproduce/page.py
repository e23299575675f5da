"""Conclusions on a paper's questions, and how they are judged and shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.bootstrap import Estimate
from experiments.page import Tone, Verdicts
from experiments.page import Verdict as Line

FEWEST = 10
"""Requests below which nothing is concluded."""
Verdict = Literal["agrees", "differs", "open", "figures only"]
TONES: dict[Verdict, Tone] = {
    "agrees": "good",
    "differs": "bad",
    "open": "open",
    "figures only": "plain",
}
NOTE = (
    "95 % intervals over requests: t-intervals of means, bootstrap-t of ratios. “Agrees” and "
    "“differs” are about the direction of the paper's conclusion, not its numbers. “Open”: the "
    f"interval does not tell, or there are fewer than {FEWEST} requests. “Figures only”: nothing "
    "is judged."
)


@dataclass(frozen=True)
class Conclusion:
    """One question of a paper's, and the answer found here.

    Attributes:
        question: which of the paper's.
        paper: what the paper says.
        found: what was found, with 95 % intervals.
        verdict: see `judge`; `figures only` where nothing is judged.
    """

    question: str
    paper: str
    found: str
    verdict: Verdict


def judge(requests: int, *claims: Estimate, given: Collection[Estimate] = ()) -> Verdict:
    """`agrees` if all claims hold, `differs` if the opposite of one does, else `open`.

    Args:
        requests: that intervals are over; of fewer than `FEWEST` nothing is concluded.
        claims: quantities that are above 0 if the paper is right.
        given: quantities above 0 where agreement means something; else it is withheld.
    """
    if requests < FEWEST:
        return "open"
    if any(claim.high < 0 for claim in claims):
        return "differs"
    return "agrees" if all(each.low > 0 for each in (*claims, *given)) else "open"


def verdicts(conclusions: Sequence[Conclusion]) -> Verdicts:
    """Conclusions as the table on top of a reproduction's page."""
    return Verdicts(
        columns=("question", "the paper", "here", ""),
        rows=[
            Line((each.question, each.paper, each.found), each.verdict, TONES[each.verdict])
            for each in conclusions
        ],
        note=NOTE,
    )

"""Whether a run's bids are an equilibrium, in one sentence for each kind of answer.

Bids that rest (from the third quarter to the last, and within it) are judged as fixed bids: by what
better ones would bring at the means. Where little can be gained there though bids move, they drift
over a plateau. Where means rest but bids swing from round to round, as they do when they are drawn
at random, what was played is judged, round for round, by what one bid in all rounds would have
brought each advertiser: little for all is a coarse correlated equilibrium. That is less than Nash's
and what learners without regret tend to under any mechanism; it tells that they have learnt.

Both are `experiments.learned`, which knows of no budgets: where one binds, there is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from experiments.equilibrium.diagnosis import EXPLOITABILITY, MOVEMENT
from experiments.report.records import Records
from experiments.report.wording import listed, percent, told_percent

ANSWERS = {
    "yes": "Yes under {who}: bids have come to rest, and by other fixed bids all advertisers "
    "together could gain {gain}, at most {limit}, as far as a search finds.",
    "drifting": "At mean bids yes under {who}: there all advertisers together could gain {gain}, "
    "at most {limit}, as far as a search finds. But bids are still moving ({moved}).",
    "moving": "No under {who}: bids are still moving ({moved}), and at mean bids all advertisers "
    "together could gain {gain}.",
    "played": "A coarse correlated equilibrium under {who}, which is weaker than Nash's and what "
    "learners without regret tend to: mean bids rest, and bids swing about them from round to "
    "round. Had each advertiser, alone, bid the same in all rounds, the best such bids that a "
    "search finds would have gained {regret}: at most {limit} ({most}). At mean bids all together "
    "could gain {gain}.",
    "regretted": "No under {who}: mean bids rest, but bids swing about them from round to round "
    "({swung}), and had each advertiser, alone, bid the same in all rounds, the best such bids "
    "would have gained {regret}, more than {limit} ({most}).",
    "unsure": "Not to be told under {who}: mean bids rest, and bids swing about them from round to "
    "round; had each advertiser, alone, bid the same in all rounds, the best such bids would have "
    "gained {regret}, an interval on both sides of the limit of {limit}.",
    "resting": "No under {who}: bids have come to rest, but by other fixed bids all advertisers "
    "together could gain {gain}, more than {limit}.",
    "gaining": "No under {who}, whether bids rest or not: at mean bids all advertisers together "
    "could gain {gain}, and by one bid each in all rounds they would have gained {regret}, both "
    "more than {limit}.",
    "infinite": "No under {who}: nobody attains any value, though by other bids somebody could, in "
    "{lost}; in the others all advertisers together could gain {gain} at mean bids.",
    "open": "Not to be told under {who}: {moved}, and {swung} (at rest: at most {rest}); at mean "
    "bids all advertisers together could gain {gain}, and by one bid each in all rounds they would "
    "have gained {regret} (in equilibrium: at most {limit}). Some of these intervals lie on both "
    "sides of their limits.",
    "single": "Not to be told from a single replication under {who}: {moved}, and {swung}; at mean "
    "bids all advertisers together could gain {gain}.",
    "budgets": "Not to be told under {who}: a budget was spent, and what other bids would gain is "
    "computed for markets without budgets only.",
    "short": "Not to be told under {who} from fewer than 4 rounds; at mean bids all "
    "advertisers together could gain {gain}.",
    "nothing": "Nobody attains any value under {who}.",
}
"""What is said of mechanisms by the kind of their answer."""


def settled(run: Records) -> str:
    """Whether bids have come to rest, and what could still be gained."""
    if not run.exploitability:
        return "This folder does not tell what could be gained by other bids."
    kinds: dict[str, list[str]] = {}
    for label in run.labels:
        kinds.setdefault(answer(run, label), []).append(label)
    found = []
    for kind, text in ANSWERS.items():
        if who := kinds.get(kind):
            moved = _by_mechanism(run.movement, who, "of truthful")
            swung = _by_mechanism(run.swing, who, "of truthful")
            words = text.format(
                who=listed(who),
                moved=f"mean bids moved by {moved} from the third quarter of the rounds to the "
                "last",
                swung=f"within the last quarter bids swing by {swung}",
                gain=_by_mechanism(run.exploitability, who, "of the value they attain"),
                regret=_by_mechanism(run.regret, who, "of the value that all attain"),
                most=_most(run, who),
                lost=_lost(run, who),
                limit=_limit(EXPLOITABILITY),
                rest=_limit(MOVEMENT),
            )
            found.append(words)
    return " ".join(found)


def answer(run: Records, label: str) -> str:
    """Which of `ANSWERS` is true of a mechanism."""
    moved, gain, regret = run.movement[label], run.exploitability[label], run.regret[label]
    if gain["mean"] is None or (regret["mean"] is None and not regret["infinite"]):
        return "nothing"
    if run.budget_binds(label):
        return "budgets"
    if gain["infinite"] or regret["infinite"]:
        return "infinite"
    if moved["mean"] is None:
        return "short"
    if run.replications == 1:
        return "single"
    fixed, played = _within(gain, EXPLOITABILITY), _within(regret, EXPLOITABILITY)
    still, steady = _within(moved, MOVEMENT), _within(run.swing[label], MOVEMENT)
    if still is False:
        return "drifting" if fixed else "moving"
    if still and steady:
        return {True: "yes", False: "resting", None: "open"}[fixed]
    if still and steady is False:  # means over a quarter hide what goes on within it
        return {True: "played", False: "regretted", None: "unsure"}[played]
    return "gaining" if fixed is False and played is False else "open"


def _limit(share: float) -> str:
    return f"{100 * share:g}\u00a0%"


def _most(run: Records, who: Sequence[str]) -> str:
    """Of each mechanism the advertiser with the greatest regret in the value that it attains."""
    titles = dict(run.advertisers.select("advertiser", "title").unique().iter_rows())
    each = (
        run.gains.group_by("mechanism", "advertiser", maintain_order=True)
        .agg(
            lost=(pl.col("played_gain") + pl.col("played_owed")).sum(),
            value=pl.col("played_value").sum(),
        )
        .filter(pl.col("value") > 0)
        .with_columns(share=pl.col("lost") / pl.col("value"))
        .sort("share", descending=True, maintain_order=True)
    )
    words = []
    for label in who:
        ours = each.filter(pl.col("mechanism") == label)
        if not ours.height:
            continue
        first = ours.row(0, named=True)
        under = f" under {label}" if len(who) > 1 else ""
        words.append(f"{titles[first['advertiser']]} {percent(first['share'])}{under}")
    return f"of its own value at most {listed(words)}"


def _lost(run: Records, who: Sequence[str]) -> str:
    """In how many replications exploitability or, where that is finite, regret is infinite."""
    counts = [
        f"{run.exploitability[m]['infinite'] or run.regret[m]['infinite']} of {run.replications} "
        "replications"
        for m in who
    ]
    if len(who) == 1:
        return counts[0]
    return listed([f"{count} under {label}" for count, label in zip(counts, who, strict=True)])


def _within(found: Mapping[str, Any], limit: float) -> bool | None:
    """Whether a mean is at most `limit`; None where its interval holds both or is lacking."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return None
    return True if high <= limit else False if low > limit else None


def _by_mechanism(found: Mapping[str, Mapping[str, Any]], who: Sequence[str], of: str) -> str:
    """Percentages of mechanisms; of one alone, whose name has been said, without it."""
    if len(who) == 1:
        return f"{told_percent(found[who[0]])} {of}"
    first, *others = who
    words = [f"{told_percent(found[first])} {of} under {first}"]
    return listed(words + [f"{told_percent(found[label])} under {label}" for label in others])

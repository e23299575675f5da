"""The sentences on top of a report, on markets made up so that the right ones are known."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.equilibrium.diagnosis import EXPLOITABILITY, MOVEMENT
from experiments.report import settled, summary
from experiments.report.records import Records
from experiments.report.rows import rows
from experiments.report.wording import number
from experiments.tables import spread
from market.ledger import PER_ROUND

T = 8
PEOPLE = (("utility", 2.0, 1.0), ("value", 3.0, 1.5))
"""Objective, value and target ROI."""
NOISE = np.array([-0.02, 0.01, 0.03, -0.02])


def market(totals, bids=None, gains=None, paid=None, regret=None, **changes):
    """Records of a market in which nothing happens but what is given.

    Args:
        totals: by mechanism (R,) of revenue, the same in all rounds; welfare is 1 more and user
            satisfaction 0.5.
        bids: by mechanism (R, T) multiples of truthful, of all advertisers; default truthful.
        gains: by mechanism (R,) what all together could gain of the value they attain.
        regret: the same of what was played.
        paid: by mechanism the payments of value maximizers per unit of value, default 0.5.
    """
    rounds, people, could = [], [], []
    for label, revenue in totals.items():
        revenue = np.asarray(revenue, dtype=float)
        R = len(revenue)
        ratio = np.ones((R, T)) if bids is None else np.broadcast_to(bids[label], (R, T))
        share = 0.5 if paid is None else paid[label]
        for r, t in np.ndindex(R, T):
            row = dict.fromkeys(PER_ROUND, 1.0) | {
                "revenue": revenue[r], "expected_revenue": revenue[r],
                "welfare": revenue[r] + 1, "user_satisfaction": 0.5,
            }  # fmt: skip
            rounds.append({"mechanism": label, "replication": r, "round": t, **row})
            for i, (kind, value, target) in enumerate(PEOPLE):
                spent = value * (share if kind == "value" else 0.5)
                people.append(
                    {
                        "mechanism": label, "replication": r, "round": t, "advertiser": i,
                        "title": f"Ad {i}", "objective": kind, "bid": ratio[r, t] * value / target,
                        "value": value, "target_roi": target, "requests": 1, "itctr": 1.0,
                        "payment": spent, "expected_utility": value - spent,
                    }
                )  # fmt: skip
        for r, i in np.ndindex(R, len(PEOPLE)):
            lost, missed = (
                0.0 if each is None else float(np.broadcast_to(each[label], R)[r])
                for each in (gains, regret)
            )
            could.append(
                {
                    "mechanism": label, "replication": r, "advertiser": i, "value": 1.0,
                    "gain": lost, "owed": 0.0, "played_value": 1.0, "played_gain": missed,
                    "played_owed": 0.0,
                }
            )  # fmt: skip
    replications = len(next(iter(totals.values())))
    given = {
        "folder": Path("made-up"),
        "scenario": {"name": "made-up", "rounds": T, "replications": replications},
        "scenario_text": "",
        "manifest": {"seed": 0, "pool": {"source": "recorded", "model": "big-70b"}},
        "rounds": pl.DataFrame(rounds),
        "advertisers": pl.DataFrame(people),
        "best": None,
        "gains": pl.DataFrame(could),
        "plans": None,
        "samples": {},
    }
    return Records(**(given | changes))


def told(run):
    return {each.about: each.text.replace("\u00a0", " ") for each in summary.sentences(run)}


def test_the_winner_is_named_with_its_paired_lead():
    lead = 0.1 + NOISE / 10
    run = market({"a": 0.3 + 20 * NOISE, "b": 0.3 + 20 * NOISE - lead})
    won = told(run)["Who won?"]
    reach = 3.182 * lead.std(ddof=1) / 2  # t quantile of 3 degrees of freedom
    interval = f"[{number(lead.mean() - reach)}, {number(lead.mean() + reach)}]"
    assert won.startswith(f"a earns more revenue: 0.300 money per request, 0.100 {interval} (50 %)")
    assert "Welfare is greater under a: 1.30" in won
    assert (
        "No difference in user satisfaction shows between a, with 0.500 on a scale of 0 to 1, and b"
        in won
    )
    assert "a less b is 0 [0, 0]" in won


def test_what_chance_may_have_done_is_no_win():
    won = told(market({"a": 0.31 + NOISE, "b": 0.3 + NOISE[::-1]}))["Who won?"]
    assert won.startswith("No difference in revenue shows between a, with 0.310 money per request")
    assert "earns" not in won and "greater" not in won


def test_of_three_each_is_compared_with_the_first():
    run = market({"a": 0.2 + NOISE, "b": 0.5 + NOISE, "c": 0.495 + NOISE[::-1]})
    won = told(run)["Who won?"]
    assert won.startswith("No difference in revenue shows between b, with 0.500")
    assert "and c (b less c is" in won and "under b it is 0.300 [0.300, 0.300]" in won
    won = told(market({"a": 0.2 + NOISE, "b": 0.5 + NOISE, "c": 0.4 + NOISE}))["Who won?"]
    assert won.startswith("b earns the most revenue: 0.500")
    assert re.search(r"0\.100 \[\S+ \S+ \(25 %\) more than under c and 0\.300 \[.*\(150 %\)", won)


def test_one_mechanism_has_won_nothing():
    won = told(market({"a": 0.3 + NOISE}))["Who won?"]
    assert won.startswith("Only a was run: revenue 0.300 [") and "more" not in won


def test_one_replication_proves_nothing():
    found = told(market({"a": [0.5], "b": [0.3]}))
    assert "Revenue is 0.500 under a and 0.300 under b" in found["Who won?"]
    assert "one replication, which may be chance" in found["Who won?"]
    assert "more" not in found["Who won?"]
    assert "market totals have no intervals" in found["Read with care."]
    assert found["Is it an equilibrium?"].startswith(
        "Not to be told from a single replication under a"
    )


def wide(mean):
    """(4,) with that mean, and an interval that reaches far on both sides."""
    return mean * np.array([0.1, 1.9, 0.2, 1.8])


def moving(by):
    """(R, T) bids that move by `by` (R,) multiples of truthful, from the third quarter on."""
    return 1 + np.outer(by, np.arange(T) >= 3 * T // 4)


REST, DRIFT = np.full(4, MOVEMENT / 2), np.full(4, 4 * MOVEMENT)
NONE, SOME = np.full(4, EXPLOITABILITY / 2), np.full(4, 10 * EXPLOITABILITY)


@pytest.mark.parametrize(
    ("moved", "gain", "kind", "words"),
    [
        (REST, NONE, "yes", "Yes under a: bids have come to rest, and by other fixed bids all"),
        (REST, NONE, "yes", "could gain 0.250 % [0.250, 0.250] of the value they attain"),
        (DRIFT, NONE, "drifting", "At mean bids yes under a: there all advertisers together could"),
        (DRIFT, wide(EXPLOITABILITY), "moving", "No under a: bids are still moving (mean bids"),
        (DRIFT, SOME, "moving", "could gain 5.00 % [5.00, 5.00] of the value they attain"),
        (REST, SOME, "resting", "No under a: bids have come to rest, but by other fixed bids all"),
        (wide(MOVEMENT), SOME, "gaining", "No under a, whether bids rest or not"),
        (wide(MOVEMENT), NONE, "open", "Not to be told under a"),
        (REST, wide(EXPLOITABILITY), "open", "Some of these intervals lie on both sides"),
        (REST, np.full(4, np.inf), "nothing", "Nobody attains any value under a"),
    ],
)
def test_an_equilibrium_is_what_is_at_rest_and_cannot_be_exploited(moved, gain, kind, words):
    run = market({"a": 0.3 + NOISE}, {"a": moving(moved)}, {"a": gain}, regret={"a": gain})
    assert settled.answer(run, "a") == kind
    assert words in told(run)["Is it an equilibrium?"]


ALTERNATING = np.tile([0.1, 1.5], (4, T // 2))


@pytest.mark.parametrize(
    ("regret", "kind", "words"),
    [
        (NONE, "played", "A coarse correlated equilibrium under a, which is weaker than Nash's"),
        (NONE, "played", "0.250 % [0.250, 0.250] of the value that all attain: at most 0.5 % (of"),
        (SOME, "regretted", "would have gained 5.00 % [5.00, 5.00] of the value that all attain"),
        (SOME, "regretted", "from round to round (within the last quarter bids swing by 140 %"),
        (wide(EXPLOITABILITY), "unsure", "Not to be told under a: mean bids rest, and bids swing"),
        (np.full(4, np.inf), "infinite", "though by other bids somebody could, in 4 of 4"),
        (np.array([0, 0, 0, np.inf]), "infinite", "though by other bids somebody could, in 1 of 4"),
    ],
)
def test_bids_that_swing_about_means_at_rest_are_judged_by_what_was_played(regret, kind, words):
    run = market({"a": 0.3 + NOISE}, {"a": ALTERNATING}, regret={"a": regret})
    assert run.movement["a"]["mean"] == 0 and settled.answer(run, "a") == kind
    text = told(run)["Is it an equilibrium?"]
    assert words in text and ("coarse correlated" in text) == (kind == "played")
    few = run.advertisers.filter(pl.col("round") < 5)  # the last quarter is one round
    assert spread(few)["mean"] == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("gain", "regret", "kind", "words"),
    [
        (SOME, SOME, "gaining", "No under a, whether bids rest or not: at mean bids all"),
        (SOME, NONE, "open", "Some of these intervals lie on both sides of their limits"),
        (NONE, SOME, "open", "would have gained 5.00 % [5.00, 5.00]"),
    ],
)
def test_where_it_is_open_whether_bids_rest_both_questions_must_have_the_same_answer(
    gain, regret, kind, words
):
    bids = ALTERNATING * moving(wide(MOVEMENT))
    run = market({"a": 0.3 + NOISE}, {"a": bids}, {"a": gain}, regret={"a": regret})
    assert settled.answer(run, "a") == kind
    assert words in told(run)["Is it an equilibrium?"]


def test_whose_mean_bids_move_is_in_no_equilibrium_however_little_is_regretted():
    bids = ALTERNATING * moving(DRIFT)
    run = market({"a": 0.3 + NOISE}, {"a": bids}, regret={"a": NONE})
    assert settled.answer(run, "a") == "drifting"


def test_the_greatest_regret_of_one_advertiser_is_told():
    run = market({"a": 0.3 + NOISE}, {"a": ALTERNATING})
    second = pl.col("advertiser") == 1
    gains = run.gains.with_columns(
        played_gain=pl.when(second).then(0.0008).otherwise(0.0),
        played_value=pl.when(second).then(0.01).otherwise(1.0),
    )
    text = told(replace(run, gains=gains))["Is it an equilibrium?"]
    assert "(of its own value at most Ad 1 8.00 %)" in text


@pytest.mark.parametrize("spent", [{"a": 1.0}, {"a": 0.96}, {}, {"a": 0.2}])
def test_where_a_budget_is_spent_nothing_is_said_of_gains(spent):
    scenario = {"rounds": T, "replications": 4, "population": [{"count": 2, "budget": 3.0}]}
    manifest = {"seed": 0, "budget_spent": spent}
    run = market({"a": 0.3 + NOISE}, gains={"a": SOME}, scenario=scenario, manifest=manifest)
    binds = spent != {"a": 0.2}
    assert settled.answer(run, "a") == ("budgets" if binds else "resting")
    text = told(run)["Is it an equilibrium?"]
    assert text.startswith("Not to be told under a") == binds and ("could gain" in text) != binds
    exploitability = next(row for row in rows(run) if row.name == "Exploitability")
    assert ("budgets left out" in exploitability.unit) == binds


def test_an_interval_of_swings_that_holds_the_limit_leaves_it_open():
    swings = 1 + np.outer(wide(MOVEMENT) / 2, np.tile([-1, 1], T // 2))
    run = market({"a": 0.3 + NOISE}, {"a": swings})
    assert settled.answer(run, "a") == "open"


def test_replications_in_which_gains_are_infinite_are_counted():
    totals = dict.fromkeys("ab", 0.3 + NOISE)
    lost = {"a": np.array([0, 0, np.inf, np.inf]), "b": np.array([0, 0, 0, np.inf])}
    text = told(market({"a": totals["a"]}, gains=lost))["Is it an equilibrium?"]
    assert text.startswith("No under a: nobody attains any value") and "2 of 4 repl" in text
    run = market(totals, gains=lost)
    text = told(run)["Is it an equilibrium?"]
    assert "in 2 of 4 replications under a and 1 of 4 replications under b" in text
    last = next(row for row in rows(run) if row.name == "Exploitability")
    assert "without replications in which none is" in last.unit


def test_answers_are_given_by_mechanism():
    totals = dict.fromkeys("abc", 0.3 + NOISE)
    bids = {"a": moving(REST), "b": moving(DRIFT), "c": moving(REST)}
    text = told(market(totals, bids, dict.fromkeys("abc", NONE)))["Is it an equilibrium?"]
    assert (
        text.startswith("Yes under a and c: bids have")
        and "At mean bids yes under b: there" in text
    )
    assert "0.250 % [0.250, 0.250] of the value they attain under a and 0.250 % [0.250, " in text


def test_movement_counts_who_attains_value_and_both_directions():
    apart = np.stack([moving(np.array([0.4]))[0], moving(np.array([-0.4]))[0]])
    run = market({"a": [0.3, 0.3]}, {"a": apart})
    assert run.movement["a"]["mean"] == pytest.approx(0.4)  # though bids stay the same on average
    idle = pl.col("advertiser") == 0  # who moves attains nothing, and who attains does not move
    people = run.advertisers.with_columns(
        itctr=pl.when(idle).then(0.0).otherwise(1.0),
        bid=pl.when(idle).then("bid").otherwise(pl.col("value") / pl.col("target_roi")),
    )
    assert replace(run, advertisers=people).movement["a"]["mean"] == 0


def test_a_folder_without_gains_says_so():
    run = market({"a": 0.3 + NOISE})
    assert told(run)["Is it an equilibrium?"].startswith("Yes")
    run = replace(run, gains=None)
    assert "does not tell" in told(run)["Is it an equilibrium?"]


def test_costs_are_shares_of_value_and_missed_targets():
    run = market({"a": [0.4] * 3, "b": [0.4] * 3}, paid={"a": 0.6, "b": 0.7})
    cost = told(run)["What did it cost?"]
    share = number(100 * 0.4 / (1 + 0.4 - 0.5))
    assert f"pay {share} % [{share}, {share}] under a and {share} %" in cost
    assert "below target ROI end 0 of 1 value maximizers under a and 1 of 1 under b." in cost
    assert "Users read 1.00 ads a reply under a and 1.00 under b" in cost
    assert "without ads" not in cost
    fair = market({"a": [0.4] * 3}, paid={"a": 0.6})
    assert "No value maximizer ends more than 1 %" in told(fair)["What did it cost?"]
    manifest = {"seed": 0, "pools": [{"measures": {"satisfaction_without_ads": 0.625}}]}
    cost = told(market({"a": [0.4] * 3}, manifest=manifest))["What did it cost?"]
    assert "their satisfaction is 0.500, where candidate replies without ads have 0.625" in cost


def test_bids_stand_beside_best_responses():
    best = pl.DataFrame(
        {
            "mechanism": ["a", "a", "b", "b"],
            "advertiser": [0, 1, 0, 1],
            "objective": ["utility", "value"] * 2,
            "bid_over_value": [0.8, 0.9, 0.5, 0.6],
            "bid_over_target": [None, 1.9, None, 1.2],
            "note": ["", "", "", "ROI target does not bind up to the cap of 10 v/target"],
            "converged": [True, True, False, False],
        }
    )
    found = told(market(dict.fromkeys("ab", 0.3 + NOISE), best=best))
    bids = found["What do they bid?"]
    assert bids.startswith("Utility maximizers bid 1.00 [no interval from one] times their value")
    assert "under a (best response 0.800)" in bids and "(best response 1.90)" in bids
    assert "under b (best response did not converge)" in bids
    assert "did not converge under b" in found["Read with care."]


def test_a_large_llm_with_sound_weights_wants_no_warning():
    assert "Read with care." not in told(market({"a": 0.3 + NOISE}))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"pool": {"source": "synthetic"}}, "Replies are synthetic"),
        ({"pool": {"source": "recorded", "model": "smollm2-135m"}}, "is a small LLM (135M param"),
        (
            {"low_effective_sample_size": True, "effective_sample_size_min": 1.25},
            "effective sample size of the weights is 1.25, below 2",
        ),
        ({"estimates": {"a": {"estimate": "surface"}}}, "Under a, what other bids would bring"),
        ({"replies": "live"}, "written anew in every round"),
    ],
)
def test_warnings(manifest, words):
    run = market({"a": 0.3 + NOISE}, manifest={"seed": 0, **manifest})
    assert words in told(run)["Read with care."]


def test_budgets_are_a_warning():
    scenario = {"rounds": T, "replications": 4, "population": [{"budget": None}, {"budget": 3.0}]}
    care = told(market({"a": 0.3 + NOISE}, scenario=scenario))["Read with care."]
    assert (
        "gains and regret leave budgets out; so do expected payments, hence what advertisers are"
        in care
    )

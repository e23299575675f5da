"""The page: a market played by Mesa's SolaraViz, or a finished run with a slider of rounds.

SolaraViz gives the controls and the parameters, at its side; the sheet beside it is ours. It reads
parameters when a market is reset; here a market also starts anew as soon as one is changed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import solara
import solara.lab
from mesa.visualization import SolaraViz
from mesa.visualization.utils import force_update, update_counter

from experiments.dashboard import view
from experiments.dashboard.desk import MARKET, Desk
from experiments.dashboard.replay import Served
from experiments.dashboard.stage import Choice, Stage, StagedMarket, pools_of_run
from experiments.report.records import Records
from market.result import Result
from mechanisms.errors import BadInput

desk = Desk(None)
"""What the page shows; set before it is served (`experiments.dashboard.server`)."""

START = "▶ plays the market; Step plays as many rounds as there are between two pictures."
OVER = "All rounds are played. Reset starts the market anew, under what is chosen at the side."
NOT_HERE = (
    "The replies that this run traded on are not in this machine's cache, or its mechanism plans "
    "for periods: its auctions cannot be shown again."
)
SETTLING = 0.15
"""Seconds for which a slider must rest before anything is drawn for it."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What there is to see after so many rounds: records, auctions of the last, and pictures."""

    rounds: int
    result: Result
    served: Served | None
    drawn: list[tuple[str, str]]

    @classmethod
    def of(
        cls, rounds: int, result: Result, served: Served | None, best: pl.DataFrame | None
    ) -> Seen:
        """With the pictures of a result drawn."""
        drawn = view.pictures(result.rounds, result.advertisers, best)
        return cls(rounds, result, served, drawn)


class ChosenMarket(StagedMarket):
    """A market of what is chosen at the moment.

    Args:
        stage: what is played on.
        chosen: by the names of `Choice`, what the inputs of the page hold.
        kwargs: what SolaraViz makes of them besides, which may be older.
    """

    def __init__(
        self, stage: Stage, chosen: dict[str, solara.Reactive[Any]], **kwargs: Any
    ) -> None:
        super().__init__(stage, **{name: each.value for name, each in chosen.items()})


@solara.component
def Layout(children: list[Any]) -> None:
    """The frame around the page: a plain bar, and a side for the controls."""
    solara.AppLayout(children=children, toolbar_dark=False, color="#f6f7f9", navigation=False)


@solara.component
def Page() -> None:
    """A market or a finished run, whichever is chosen."""
    shown = solara.use_reactive(desk.opened)
    solara.Title("admarket")
    solara.Style(view.style())
    if len(desk.names) > 1:
        with solara.Sidebar(), solara.Column(classes=["pa-4"]):
            solara.Select("Show", values=desk.names, value=shown)
    if shown.value == MARKET:
        MarketPage(desk.stage)
    else:
        RunPage(desk.runs[shown.value]).key(shown.value)


@solara.component
def MarketPage(stage: Stage) -> None:
    """A market to be played and changed."""
    first = solara.use_memo(lambda: stage.first, [])
    chosen = {name: solara.use_reactive(value) for name, value in asdict(first).items()}
    made = solara.use_memo(lambda: ChosenMarket(stage, chosen), [])
    market = solara.use_reactive(made)
    choice = stage.settled(Choice(**{name: each.value for name, each in chosen.items()}))

    def start_anew() -> None:
        # at the end SolaraViz wants to be reset, and what was played stays to be looked at
        if market.value.running and market.value.choice != choice:
            chosen["tau"].value = choice.tau
            market.value = ChosenMarket(stage, chosen)

    solara.use_effect(start_anew, [choice])
    MarketSheet(market.value)
    SolaraViz(  # shows itself at the side
        market,
        components=[],
        model_params={"stage": stage, "chosen": chosen, **_inputs(stage, chosen, choice)},
        name="admarket",
        play_interval=50,
        render_interval=min(99, stage.scenario.rounds // 100 * 2 + 1),
    )


@solara.component
def MarketSheet(market: StagedMarket) -> None:
    """Figures of the market so far, and the replies of its last round."""
    update_counter.get()  # SolaraViz raises it when there is something new to see
    drawn: solara.Reactive[tuple[StagedMarket, Seen] | None] = solara.use_reactive(None)
    latest = solara.use_ref(market)
    latest.current = market
    looked_at = solara.use_ref((market, 0))

    def look() -> None:  # apart from the rendering, which has to answer the controls
        with market.lock:
            now = market, market.round
            if latest.current is not market or looked_at.current == now:
                return
            looked_at.current = now
            result = market.result()
            if result is None:
                return
            found = Seen.of(market.round, result, Served.last_of(market), market.best)
        if latest.current is market:
            drawn.value = market, found
            force_update()  # a pause leaves the rounds since the last picture untold

    solara.lab.use_task(look, dependencies=[market, market.round])
    seen = drawn.value[1] if drawn.value and drawn.value[0] is market else None
    scenario, choice, manifest = market.scenario, market.choice, market.platform.pool.manifest
    title = f"Market {market.stage.scenario.name} under {choice.mechanism}"
    values = choice.value_maximizers
    facts = [
        f"round {seen.rounds if seen else 0:,} of {scenario.rounds:,}",
        *([] if choice.tau is None else [f"tau {choice.tau:g}"]),
        f"{len(market.advertisers) - values} utility and {values} value maximizers",
        f"{scenario.replications} replications of {scenario.requests_per_round} requests a round",
        f"seed {choice.seed}",
    ]
    notes = [market.stage.note, "" if market.running else OVER]
    with solara.v.Html(tag="div", class_="admarket sheet"):
        solara.HTML(unsafe_innerHTML=view.header(title, manifest, facts, notes))
        if seen is None:
            solara.HTML(unsafe_innerHTML=view.reply(None, "Nothing is played yet", START))
        else:
            Sight(seen)


@solara.component
def RunPage(folder: Path) -> None:
    """A finished run, or what is wrong with it."""

    def read() -> Records | BadInput:
        try:
            return Records.read(folder)
        except BadInput as error:
            return error

    run = solara.use_memo(read, [folder])
    if isinstance(run, BadInput):
        solara.Error(str(run))
    else:
        RunSheet(run)
    with solara.AppBarTitle():
        solara.Text("admarket")


@solara.component
def RunSheet(run: Records) -> None:
    """Figures of a finished run up to a round, its replies, and what produced it."""
    total = int(run.rounds["round"].max()) + 1
    upto, mechanism = solara.use_reactive(total), solara.use_reactive(run.labels[0])
    pools = solara.use_memo(lambda: pools_of_run(run), [run])
    seen: solara.Reactive[Seen | None] = solara.use_reactive(None)

    def look() -> None:
        wanted = rounds, name = upto.value, mechanism.value
        time.sleep(SETTLING)
        if wanted != (upto.value, mechanism.value):
            return
        early = pl.col("round") < rounds
        result = Result.of(run.rounds.filter(early), run.advertisers.filter(early))
        found = Seen.of(rounds, result, Served.of_run(run, pools, name, rounds - 1), run.best)
        if wanted == (upto.value, mechanism.value):
            seen.value = found

    solara.lab.use_task(look, dependencies=[upto.value, mechanism.value])
    facts = [f"rounds 1 to {upto.value:,} of {total:,}", f"seed {run.manifest['seed']}"]
    if run.manifest.get("replies") == "live":
        facts.append("replies written anew in every round")
    with solara.v.Html(tag="div", class_="admarket sheet"):
        solara.HTML(unsafe_innerHTML=view.header(run.title, run.pool_manifest, facts))
        if seen.value is None:
            solara.HTML(unsafe_innerHTML=view.figures([]))
        else:
            produced = view.facts(view.produced(run), "What produced it")
            Sight(seen.value, produced)
    with solara.Sidebar(), solara.Column(classes=["pa-4"]):
        solara.SliderInt("Rounds", value=upto, min=1, max=total)
        if len(run.labels) > 1:
            solara.Select("Replies under", values=run.labels, value=mechanism)


@solara.component
def Sight(seen: Seen, below: str = "") -> None:
    """Numbers, then pictures beside a reply, with HTML `below` it."""
    solara.HTML(unsafe_innerHTML=view.numbers(seen.result.summary))
    with solara.v.Html(tag="div", class_="admarket-columns"):
        solara.HTML(unsafe_innerHTML=view.figures(seen.drawn))
        with solara.v.Html(tag="div"):
            Replies(seen.served)
            solara.HTML(unsafe_innerHTML=below)


@solara.component
def Replies(served: Served | None) -> None:
    """One of the replies of a round, with its ads marked and priced."""
    number = solara.use_reactive(1)
    if served is None:
        solara.HTML(unsafe_innerHTML=view.reply(None, "Replies", NOT_HERE))
        return
    count = served.requests.shape[1]
    k = min(number.value, count)
    heading = f"Reply {k} of {count} in round {served.round + 1:,}"
    solara.HTML(unsafe_innerHTML=view.reply(served.reply(k - 1), heading))
    if count > 1:
        solara.SliderInt("Reply", value=number, min=1, max=count)


def _inputs(stage: Stage, chosen: dict[str, solara.Reactive], choice: Choice) -> dict[str, Any]:
    """What SolaraViz asks for, by name; tau only under a mechanism that has one."""
    taus, N = stage.taus(choice.mechanism), len(stage.scenario.advertisers)

    def one_of(name: str, label: str, values: list[Any]) -> dict[str, Any]:
        return {"type": "Select", "label": label, "value": chosen[name], "values": values}

    def up_to(name: str, label: str, most: int) -> dict[str, Any]:
        span = {"min": 0, "max": most, "step": 1}
        return {"type": "SliderInt", "label": label, "value": chosen[name], **span}

    inputs = {"mechanism": one_of("mechanism", "Mechanism", stage.mechanisms)}
    if taus:
        inputs["tau"] = one_of("tau", "tau, weight of KL", taus)
    return inputs | {
        "value_maximizers": up_to("value_maximizers", f"Value maximizers, of {N}", N),
        "utility_learner": one_of("utility_learner", "Utility maximizers learn by", stage.learners),
        "value_learner": one_of("value_learner", "Value maximizers learn by", stage.learners),
        "seed": up_to("seed", "Seed", max(20, stage.seed)),
    }

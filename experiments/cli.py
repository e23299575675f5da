"""The command `admarket`; exit codes 0 done, 1 the run failed, 2 bad input (one line)."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

# Threads that spin while they wait make two programs on the same cores slow each other down many
# times over; sleeping costs a tenth where there is only one. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from mechanisms.errors import BadInput
from mechanisms.gibbs import LowEffectiveSampleSize

app = typer.Typer(
    help="Markets in which advertisers bid for the words of an LLM.",
    pretty_exceptions_enable=False,
)

# Typer brings its own click, whose base class of usage errors it does not name.
USAGE_ERROR = typer.BadParameter.__base__

ScenarioArgument = Annotated[
    str, typer.Argument(help="A scenario file, or the name of a bundled one.")
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of arrivals, dice and learners.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Results folder; default results/NAME-seedSEED.")
]
CatalogOption = Annotated[
    str | None, typer.Option(help="Catalog folder, instead of the scenario's.")
]


@app.command()
def run(
    scenario: ScenarioArgument = "default",
    seed: SeedOption = 0,
    out: OutOption = None,
    catalog: CatalogOption = None,
) -> None:
    """Run a market and write its results folder, ending with the report's path."""
    from experiments import run as running

    described = _load(scenario, catalog)
    folder = out or Path("results") / f"{described.name}-seed{seed}"
    running.check_folder(described, seed, folder)
    finished = running.run(described, seed, say=_say, progress=True)
    _say("figures and report")
    print(running.write(finished, folder))


@app.command()
def record(
    scenario: ScenarioArgument = "default",
    catalog: CatalogOption = None,
    out: Annotated[Path | None, typer.Option(help="Also save the pool in this folder.")] = None,
) -> None:
    """Record a scenario's candidate replies into the cache, and say what they are like."""
    from market.environment import pools_of
    from mechanisms.recording import describe, save_pool
    from mechanisms.registry import make_mechanism

    described = _load(scenario, catalog)
    arms = [make_mechanism(arm.name, **arm.parameters) for arm in described.arms]
    pools = pools_of(described, arms, _say)
    for number, pool in enumerate({id(pool): pool for pool in pools}.values()):
        B, M, n = pool.shape
        design = pool.manifest.get("design", {})
        way = f", written by {design['generation']}" if design else ""
        print(f"requests {B}, replies {M}, ads {n}, advertisers {pool.num_advertisers}{way}")
        for key, value in describe(pool).items():
            print(f"{key} {value:.4g}")
        print(f"content_hash {pool.content_hash}")
        if out is not None:
            print(save_pool(pool, out if not number else out.with_name(f"{out.name}-{number}")))


MechanismOption = Annotated[
    list[str] | None,
    typer.Option("--mechanism", help="A mechanism, repeatable; default the scenario's."),
]
LearnerOption = Annotated[
    str, typer.Option(help="A learner for all, or `scenario` for those it describes.")
]


@app.command()
def audit(
    scenario: ScenarioArgument = "default",
    mechanism: MechanismOption = None,
    others: Annotated[
        str, typer.Option(help="What the others bid: truthful, or learned (best responses).")
    ] = "truthful",
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Try strategic deviations: incentive compatibility and individual rationality, measured."""
    from experiments.audit import run_audit

    described = _load(scenario, catalog)
    folder = out or Path("results") / f"audit-{described.name}-seed{seed}"
    print(run_audit(described, seed, folder, _say, mechanisms=mechanism, others=others))


@app.command()
def equilibrium(
    scenario: ScenarioArgument = "default",
    mechanism: MechanismOption = None,
    learner: LearnerOption = "hedge",
    rounds: Annotated[
        int | None, typer.Option(min=4, help="Rounds of learning; default the learner's.")
    ] = None,
    starts: Annotated[int, typer.Option(min=1, help="Starting points, run side by side.")] = 8,
    known: Annotated[
        bool, typer.Option(help="Instead: check learners against equilibria known in theory.")
    ] = False,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Find the equilibrium that learners settle in, and how far from an exact one it is."""
    if known:
        chosen = (scenario, mechanism, learner, rounds, starts, catalog)
        if chosen != ("default", None, "hedge", None, 8, None):
            raise BadInput("--known brings its own markets; give --seed and --out at most")
        from experiments.bayesian.page import write_known

        print(write_known(seed, out or Path("results") / f"known-equilibria-seed{seed}", _say))
        return
    from experiments.equilibrium import find_equilibrium

    described = _load(scenario, catalog)
    folder = out or Path("results") / f"equilibrium-{described.name}-{learner}-seed{seed}"
    print(
        find_equilibrium(
            described, seed, folder, _say,
            learner=learner, mechanisms=mechanism, rounds=rounds, starts=starts,
        )
    )  # fmt: skip


@app.command()
def compare(
    scenario: ScenarioArgument = "default",
    mechanism: MechanismOption = None,
    share: Annotated[
        list[float] | None, typer.Option(help="A share of value maximizers, repeatable.")
    ] = None,
    learner: Annotated[list[str] | None, typer.Option(help="A learner, repeatable.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Populations drawn per cell.")] = 8,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds of learning.")] = 2000,
    starts: Annotated[int, typer.Option(min=1, help="Starting points of each.")] = 2,
    executor: Annotated[str, typer.Option(help="serial, processes or ray.")] = "processes",
    workers: Annotated[
        int | None, typer.Option(min=1, help="At once; default one per core.")
    ] = None,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Map mechanisms against the share of value maximizers and learners, at their equilibria."""
    from experiments.compare import run_compare

    described = _load(scenario, catalog)
    folder = out or Path("results") / f"compare-{described.name}-seed{seed}"
    print(
        run_compare(
            described, seed, folder, _say,
            mechanisms=mechanism, shares=share, learners=learner,
            draws=draws, rounds=rounds, starts=starts, executor=executor, workers=workers,
        )
    )  # fmt: skip


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="warm-start, distill, irpo or online.")],
    scenario: ScenarioArgument = "llm-auction",
    start: Annotated[
        Path | None, typer.Option(help="Folder of the Ad-LLM to start from; default none.")
    ] = None,
    catalog: CatalogOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default results/train-NAME-seedSEED/STAGE.")
    ] = None,
) -> None:
    """Train a scenario's Ad-LLM by one stage; the same command goes on where it was stopped."""
    from experiments.training.stages import train as run_stage

    described = _load(scenario, catalog)
    folder = out or Path("results") / f"train-{described.name}-seed{seed}" / stage
    print(run_stage(described, stage, seed, folder, start, _say))


@app.command("bid-encodings")
def bid_encodings(
    scenario: ScenarioArgument = "llm-auction",
    steps: Annotated[int, typer.Option(min=1, help="Steps of distillation under each.")] = 50,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default results/bid-encodings-NAME-seedSEED.")
    ] = None,
) -> None:
    """Compare ways in which bids can stand in the Ad-LLM's prompt, by training under each."""
    from experiments.training.encodings import compare_encodings

    described = _load(scenario, catalog)
    folder = out or Path("results") / f"bid-encodings-{described.name}-seed{seed}"
    print(compare_encodings(described, steps, seed, folder, _say))


@app.command()
def bench(
    part: Annotated[
        list[str] | None, typer.Option(help="kernel, market or llm, repeatable; default all.")
    ] = None,
    model: Annotated[str, typer.Option(help="The LLM to measure.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    requests: Annotated[int, typer.Option(min=1, help="Prompts to generate from.")] = 8,
    replies: Annotated[int, typer.Option(min=1, help="Replies per prompt.")] = 24,
) -> None:
    """Measure speed as ratios in one run: auction kernel, market, LLM engine and recording."""
    from experiments.bench import measurements

    for line in measurements(part, model, dtype, requests, replies, _say):
        print(line, flush=True)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="Which paper's: mosaic, llm-auction or iamfm.")],
    scenario: Annotated[
        str | None, typer.Option(help="Scenario; default the bundled one of the paper's name.")
    ] = None,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default results/reproduce-NAME-seedSEED.")
    ] = None,
    ad_llm: Annotated[
        str | None, typer.Option(help="llm-auction: the Ad-LLM on trial, a folder or a name.")
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help="llm-auction: folder of training stages to compare.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="llm-auction: first train the stages missing there.")
    ] = False,
) -> None:
    """Ask a paper's questions again, in figures and sentences with intervals."""
    from experiments.reproduce import PAPERS

    if paper not in PAPERS:
        raise BadInput(f"no reproduction of {paper!r}; there is one of {', '.join(PAPERS)}")
    described = _load(scenario or paper, catalog)
    folder = out or Path("results") / f"reproduce-{described.name}-seed{seed}"
    asked = {"ad_llm": ad_llm, "stages": stages, "train": train}
    print(PAPERS[paper](described, seed, folder, _say, **asked))


@app.command("engine-check")
def engine_check(
    engine: Annotated[str, typer.Option(help="The engine to compare: vllm or openai.")] = "vllm",
    model: Annotated[str, typer.Option(help="The LLM of both.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    server: Annotated[str | None, typer.Option(help="Address, for engine openai.")] = None,
    requests: Annotated[int, typer.Option(min=2, help="Requests.")] = 8,
    replies: Annotated[int, typer.Option(min=2, help="Replies per request.")] = 12,
) -> None:
    """Compare the log-probabilities that the embedded engine and another give the same replies."""
    from experiments.engine_check import engine_check as check

    for line in check(engine, model, dtype, server, requests, replies, _say):
        print(line, flush=True)


@app.command("live-check")
def live_check(
    scenario: ScenarioArgument = "default",
    catalog: CatalogOption = None,
    requests: Annotated[int, typer.Option(min=2, help="Requests served in each mode.")] = 208,
    replies: Annotated[int, typer.Option(min=1, help="Candidate replies per request.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the LLM and the bootstrap.")] = 0,
) -> None:
    """Show that recorded and live mode agree, within a joint bootstrap interval; exit 1 if not."""
    from experiments.live_check import live_check as check

    described = _load(scenario, catalog)
    spec = {**described.replies.model_dump(), "per_request": replies, "context_probe": 0}
    found = check(described.with_(replies=spec), requests, seed, say=_say)
    for row in found.table.iter_rows(named=True):
        print(
            f"{row['quantity']:<48} recorded {row['recorded']:.5f}  live {row['live']:.5f}  "
            f"difference {row['difference']:+.5f} [{row['low']:+.5f}, {row['high']:+.5f}], "
            f"jointly within {row['reach']:.5f}"
        )
    revenue = found.table.row(0, named=True)
    share = revenue["reach"] / revenue["recorded"] if revenue["recorded"] else float("inf")
    print(
        f"{found.verdict} ({found.requests} requests; a difference of {100 * share:.0f} % of the "
        "revenue would have been seen)"
    )
    if found.verdict != "agree":
        raise typer.Exit(1)


@app.command()
def doctor(
    model: Annotated[str, typer.Option(help="The LLM that engines are to run.")] = "smollm2-135m",
    server: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server.")
    ] = None,
    deep: Annotated[
        bool, typer.Option(help="Have each engine write and score a sentence.")
    ] = False,
) -> None:
    """Say which engines work on this machine, and why not; exit 1 if none does."""
    from experiments.doctor import diagnose

    if not diagnose(model, server, deep):
        raise typer.Exit(1)


def _load(name: str, catalog: str | None):
    from market.scenario import Scenario

    scenario = Scenario.from_yaml(name)
    if catalog is None:
        return scenario
    if scenario.replies.source == "synthetic":
        raise BadInput(f"--catalog {catalog}: scenario {name} has synthetic replies, drop it")
    return scenario.with_(catalog={**scenario.catalog.model_dump(), "source": catalog})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the console command."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mechanisms").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    # A market checks its weights every round; once is enough.
    warnings.simplefilter("once", LowEffectiveSampleSize)
    try:
        sys.exit(app(standalone_mode=False))
    except BadInput as error:
        _say(f"admarket: {error}")
        sys.exit(2)
    except USAGE_ERROR as error:
        _say(f"admarket: {' '.join(error.format_message().split())} (see admarket --help)")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        _say("admarket: interrupted; nothing was overwritten")
        sys.exit(1)
    except Exception as error:  # the last line of defence: one line, and the trace on request
        if os.environ.get("ADMARKET_DEBUG"):
            raise
        first = (str(error).splitlines() or [""])[0]
        _say(
            f"admarket: the run failed, {type(error).__name__}: {first} "
            "(set ADMARKET_DEBUG=1 for the trace)"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()

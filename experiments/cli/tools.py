"""Commands about LLMs and machines: training, engines, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import (
    CatalogOption,
    ScenarioArgument,
    SeedOption,
    app,
    load,
    say,
    visible,
)
from mechanisms.errors import BadInput


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

    described = load(scenario, catalog)
    folder = out or Path("results") / f"train-{described.name}-seed{seed}" / stage
    print(run_stage(described, stage, seed, folder, start, say))


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

    described = load(scenario, catalog)
    if described.replies.source == "synthetic":
        raise BadInput(f"scenario {described.name} has no LLM; give one with recorded replies")
    folder = out or Path("results") / f"bid-encodings-{described.name}-seed{seed}"
    print(compare_encodings(described, steps, seed, folder, say))


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

    for line in measurements(part, model, dtype, requests, replies, say):
        print(line, flush=True)


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

    for line in check(engine, model, dtype, server, requests, replies, say):
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

    described = load(scenario, catalog)
    spec = {**described.replies.model_dump(), "per_request": replies, "context_probe": 0}
    found = check(described.with_(replies=spec), requests, seed, say=say)
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
    """Say which engines work, and why not; exit 1 if none does, or not the server given."""
    from experiments.doctor import diagnose

    if not diagnose(model, server, deep, lambda line: print(visible(line), flush=True)):
        raise typer.Exit(1)

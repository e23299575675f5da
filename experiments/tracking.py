"""A finished run as a run of MLflow; optional, see `docs/ecosystem.md`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from market.reading import read_yaml
from mechanisms.errors import BadInput

EXPERIMENT = "admarket"
_ENDS = ("low", "high", "clusters")


def check_mlflow() -> None:
    """Refuse to log later what cannot be logged, before anything is run.

    Raises:
        BadInput: MLflow is not installed.
    """
    try:
        import mlflow  # noqa: F401
    except ImportError:
        raise BadInput(
            '--mlflow needs MLflow, which is not installed; pip install "admarket[mlflow]"'
        ) from None


def log_to_mlflow(folder: str | Path, tracking_uri: str, experiment: str = EXPERIMENT) -> str:
    """Log a results folder that `admarket run` wrote, and return the id of MLflow's run.

    Parameters are the scenario's keys (`replies.model`) and the seed, metrics the summary's means
    with their intervals (`mosaic/revenue`, `mosaic/revenue_low`, `mosaic/utility/bid_over_value`),
    artifacts the files of the folder.

    Args:
        folder: of the results.
        tracking_uri: of MLflow: a server's address, a database's, or a folder.
        experiment: made if there is none of that name.

    Raises:
        BadInput: MLflow is missing or cannot be reached, or the folder holds no finished run.
    """
    check_mlflow()
    # its own default waits for minutes where no server answers; nothing is lost by saying so soon
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.tracking import MlflowClient

    folder = Path(folder)
    try:
        scenario = read_yaml(folder / "scenario.yaml", resolved=True)
        summary, manifest = (
            json.loads((folder / f"{name}.json").read_text("utf-8"))
            for name in ("summary", "manifest")
        )
        parameters = {**dict(_leaves(scenario)), "seed": manifest["seed"]}
        metrics = {_metric(key): value for key, value in _leaves(summary, "/") if _number(value)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(f"{folder} holds no finished run; give a folder of `admarket run`") from None
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        known = client.get_experiment_by_name(experiment)
        home = known.experiment_id if known else client.create_experiment(experiment)
        run = client.create_run(home, run_name=folder.name).info.run_id
        for key, value in parameters.items():
            client.log_param(run, key, value)
        for key, value in metrics.items():
            client.log_metric(run, key, value)
        client.log_artifacts(run, str(folder))
        client.set_terminated(run)
    except Exception as error:  # MLflow's own, or what its store or the network raises
        first = (str(error).splitlines() or [""])[0]
        raise BadInput(
            f"--mlflow {tracking_uri}: cannot be logged to ({first:.500}); the results are in "
            f"{folder}"
        ) from None
    return run


def _leaves(given: Any, dot: str = ".", name: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a nested dictionary; lists are values, as JSON."""
    if isinstance(given, dict):
        for key, part in given.items():
            yield from _leaves(part, dot, f"{name}{dot}{key}" if name else str(key))
    else:
        yield name, json.dumps(given) if isinstance(given, list) else given


def _metric(key: str) -> str:
    """`mosaic/objectives/utility/itctr/mean` is `mosaic/utility/itctr`, `low` `itctr_low`.

    A name must not go on where another ends: MLflow may keep a file by each.
    """
    inner, _, last = key.replace("/objectives/", "/").rpartition("/")
    return inner if last == "mean" else f"{inner}_{last}" if last in _ENDS else f"{inner}/{last}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

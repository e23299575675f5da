"""What the user asked to see: a market to play, finished runs to look at, and which first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.dashboard.stage import Stage
from experiments.report.records import Records
from market.scenario import Scenario

MARKET = "the market, live"
RESULTS = Path("results")


@dataclass(frozen=True, eq=False)
class Desk:
    """What is laid out.

    Attributes:
        stage: the market that can be played; None where a run's replies are not on this machine.
        runs: finished runs by the name of their folder.
        opened: what is shown first: `MARKET`, or a name of `runs`.
    """

    stage: Stage | None
    runs: Mapping[str, Path] = field(default_factory=dict)
    opened: str = MARKET

    @classmethod
    def of(cls, source: str | None, say: Callable[[str], None] = lambda _: None) -> Desk:
        """What `source` names: a results folder, a scenario, or nothing (the default market).

        Finished runs beside the folder, else those in `results`, can be looked at too.

        Raises:
            BadInput: no such scenario or finished run, or its replies are not recorded yet.
        """
        if source is None:
            return cls(Stage.of_default(say), _runs_in(RESULTS))
        folder = Path(source)
        if not folder.is_dir():
            return cls(Stage.of(Scenario.from_yaml(source), say), _runs_in(RESULTS))
        folder = folder.resolve()
        stage = Stage.of_run(Records.read(folder))
        return cls(stage, _runs_in(folder.parent) | {folder.name: folder}, folder.name)

    @property
    def names(self) -> list[str]:
        """What can be shown."""
        return [MARKET] * (self.stage is not None) + list(self.runs)


def _runs_in(folder: Path) -> dict[str, Path]:
    """Folders that hold the files of a run; whether these are whole is seen when one is shown."""
    found = sorted(path.parent for path in folder.glob("[!.]*/rounds.parquet"))
    return {each.name: each for each in found if (each / "scenario.yaml").exists()}

"""What the results folder of a run holds, read back and checked before anything is made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Required

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from experiments.learned import exploitability
from experiments.report.wording import PoolMeasures
from experiments.samples import SampleReply, load_samples
from experiments.tables import by_advertiser, by_replication, movement, spread
from experiments.unfinished import to_finish
from market.ledger import PER_ROUND
from market.reading import read_yaml
from market.result import summarise
from market.scenario import Scenario
from mechanisms.errors import BadInput

ROUNDS = {"mechanism": False, **dict.fromkeys(("replication", "round", *PER_ROUND), True)}
"""Columns that the page needs, and whether they are numbers."""
ADVERTISERS = {
    **dict.fromkeys(("mechanism", "title", "objective"), False),
    **dict.fromkeys(
        (
            "replication", "round", "advertiser", "bid", "value", "target_roi", "requests", "itctr",
            "payment", "expected_utility",
        ),
        True,
    ),
}  # fmt: skip
BEST = {
    **dict.fromkeys(("mechanism", "objective", "note"), False),
    **dict.fromkeys(("advertiser", "bid_over_value", "bid_over_target"), True),
}
SPENT = 0.95
"""Share of a budget that is near its end: from there on it may have changed bids or charges."""
GAINS = {
    "mechanism": False,
    **dict.fromkeys(("replication", "advertiser", "value", "gain", "owed"), True),
    **dict.fromkeys(("played_value", "played_gain", "played_owed"), True),
}
PLANS = {
    "mechanism": False,
    **dict.fromkeys(("period", "replication", "round", "tokens_allocation"), True),
}
SINCE = {
    "best_responses.parquet": "best responses",
    "gains.parquet": "what could be gained by other bids",
    "samples.json": "sample replies",
    "pools": "measures of the reply pool",
}
"""What runs of earlier versions lack, in words."""


class Traded(TypedDict):
    """A pool in the manifest: which mechanisms traded on it, what it is like, how it was made."""

    mechanisms: list[str]
    measures: PoolMeasures
    manifest: dict[str, Any]


class Estimate(TypedDict):
    """By what the outcomes of other bids are estimated."""

    estimate: str


class Manifest(TypedDict, total=False):
    """What the page reads of a manifest; more may be there, and less in earlier versions.

    `sha256` has the digests of the files that the page is made of.
    """

    seed: Required[int]
    pool: dict[str, Any]
    pool_hash_by_mechanism: dict[str, str]
    pools: Annotated[list[Traded], Field(min_length=1)]
    estimates: dict[str, Estimate]
    effective_sample_size_min: float
    sha256: dict[str, str]


@dataclass(frozen=True, eq=False)
class Records:
    """A finished run, as its folder tells it.

    Attributes:
        folder: where it was read.
        scenario: as resolved.
        scenario_text: the same as the file has it.
        manifest: provenance.
        rounds, advertisers: of the result.
        best: independent best responses; None if they are not there.
        gains: of `experiments.learned`; None if they are not there.
        plans: of `experiments.periods`; None under mechanisms without.
        samples: sample replies by mechanism; empty if they are not there.
        missing: what the folder lacks, in words.
    """

    folder: Path
    scenario: Mapping[str, Any]
    scenario_text: str
    manifest: Mapping[str, Any]
    rounds: pl.DataFrame
    advertisers: pl.DataFrame
    best: pl.DataFrame | None
    gains: pl.DataFrame | None
    plans: pl.DataFrame | None
    samples: Mapping[str, Sequence[SampleReply]]
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Records:
        """The run in `folder`.

        Raises:
            BadInput: there is none, it is another kind of result, or a file of it is damaged.
        """
        manifest = _manifest(folder)
        for name, digest in manifest.get("sha256", {}).items():
            _check_digest(folder / name, digest)
        text = _text(folder / "scenario.yaml")
        scenario = read_yaml(folder / "scenario.yaml", resolved=True)
        rounds = _frame(folder / "rounds.parquet", ROUNDS)
        advertisers = _frame(folder / "advertisers.parquet", ADVERTISERS, needed_only=True)
        best, gains, plans = (
            _frame(path, columns) if path.exists() else None
            for path, columns in (
                (folder / "best_responses.parquet", BEST),
                (folder / "gains.parquet", GAINS),
                (folder / "plans.parquet", PLANS),
            )
        )
        sampled = folder / "samples.json"
        there = [name for name in SINCE if (folder / name).exists()]
        there += ["pools"] * ("pools" in manifest)
        found = cls(
            folder, scenario, text, manifest, rounds, advertisers, best, gains, plans,
            load_samples(sampled) if sampled.exists() else {},
            tuple(words for name, words in SINCE.items() if name not in there),
        )  # fmt: skip
        found._check()
        return found

    def _check(self) -> None:
        """Refuse files that are not of one and the same finished run."""
        asked = [self.scenario.get(name) for name in ("rounds", "replications")]
        asked.append(self.scenario.get("requests_per_round", 1))
        if not all(isinstance(count, int) and count > 0 for count in asked):
            raise BadInput(f"{self.folder / 'scenario.yaml'}: says no rounds; it is damaged")
        labels, people = self.labels, self.advertisers["advertiser"].n_unique()
        rows = asked[0] * asked[1] * len(labels)
        for name, frame, wanted in (
            ("rounds", self.rounds, rows),
            ("advertisers", self.advertisers, rows * people),
        ):
            if frame.height != wanted:
                raise BadInput(
                    f"{self.folder / f'{name}.parquet'}: {frame.height} rows where its scenario "
                    f"makes {wanted}; the files are not of one finished run, repeat it"
                )
        for name, frame in (
            ("advertisers", self.advertisers),
            ("best_responses", self.best),
            ("gains", self.gains),
        ):
            if frame is not None and set(frame["mechanism"]) != set(labels):
                raise BadInput(
                    f"{self.folder / f'{name}.parquet'}: other mechanisms than in rounds.parquet; "
                    "the files are not of one run, repeat it"
                )

    @property
    def title(self) -> str:
        """What the run is called."""
        return f"Market {self.scenario.get('name', 'without a name')}, seed {self.manifest['seed']}"

    @property
    def labels(self) -> list[str]:
        """The mechanisms, in the order in which they were run."""
        return self.rounds["mechanism"].unique(maintain_order=True).to_list()

    @property
    def replications(self) -> int:
        """R."""
        return int(self.scenario["replications"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The scenario with defaults for what it lacks, being of an earlier version.

        Raises:
            BadInput: it has what this version does not accept.
        """
        path = str(self.folder / "scenario.yaml")
        return Scenario.from_dict(dict(self.scenario), source=path).model_dump(mode="json")

    @property
    def pool_manifest(self) -> Mapping[str, Any]:
        """How the replies came about."""
        return self.manifest.get("pool") or {}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """As `market.result.summarise` makes it."""
        return summarise(self.rounds, self.advertisers)

    @cached_property
    def by_replication(self) -> pl.DataFrame:
        """Of `experiments.tables`."""
        return by_replication(self.rounds)

    @cached_property
    def by_advertiser(self) -> pl.DataFrame:
        """Of `experiments.tables`."""
        return by_advertiser(self.advertisers)

    @cached_property
    def movement(self) -> dict[str, dict[str, Any]]:
        """How far bids still moved, by mechanism (`experiments.tables`)."""
        return movement(self.advertisers)

    @cached_property
    def swing(self) -> dict[str, dict[str, Any]]:
        """How far bids swing within the last quarter, by mechanism (`experiments.tables`)."""
        bids = pl.col("mechanism")
        return {name: spread(self.advertisers.filter(bids == name)) for name in self.labels}

    @cached_property
    def exploitability(self) -> dict[str, dict[str, Any]]:
        """What could be gained at the bids learned, by mechanism; empty where it was not kept."""
        return {} if self.gains is None else exploitability(self.gains)

    @cached_property
    def regret(self) -> dict[str, dict[str, Any]]:
        """What one bid in all rounds would have gained, by mechanism; empty as above."""
        return {} if self.gains is None else exploitability(self.gains, of="play")

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """The scenario's groups of advertisers."""
        given = self.scenario.get("population") or []
        return [group for group in given if isinstance(group, Mapping)]

    @property
    def has_budgets(self) -> bool:
        """Whether some advertisers have one."""
        return any(group.get("budget") for group in self.groups)

    def budget_binds(self, label: str) -> bool:
        """Whether some advertiser came near the end of its budget in some replication."""
        spent = self.manifest.get("budget_spent") or {}
        return self.has_budgets and spent.get(label, 1.0) >= SPENT

    @property
    def budgets_bind(self) -> bool:
        """Whether some did under any mechanism."""
        return any(self.budget_binds(label) for label in self.labels)

    def relabelled(self, names: Mapping[str, str]) -> Records:
        """The same with its mechanisms called otherwise, to stand beside other runs."""
        called = pl.col("mechanism").replace_strict(names)
        frames = {
            name: frame.with_columns(called)
            for name in ("rounds", "advertisers", "best", "gains", "plans")
            if (frame := getattr(self, name)) is not None
        }
        return replace(self, **frames, samples={})


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run; what else a folder may be is said."""
    going_on = to_finish(str(folder))
    if not folder.is_dir():
        mend = going_on[0] if going_on else "give one that `admarket run` wrote"
        raise BadInput(f"{folder}: no such folder; {mend}")
    path = folder / "manifest.json"
    lacking = [
        name
        for name in ("manifest.json", "scenario.yaml", "rounds.parquet", "advertisers.parquet")
        if not (folder / name).exists()
    ]
    if "manifest.json" not in lacking:
        manifest = _parsed(path)
        if isinstance(manifest.get("kind"), str):
            raise BadInput(
                f"{folder} holds the result of another command ({manifest['kind']!r:.40}); "
                "this is for folders that `admarket run` wrote"
            )
    if lacking:
        mend = going_on[0] if going_on else "give a folder that holds one"
        raise BadInput(f"{folder}: no finished run (no {lacking[0]}); {mend}")
    try:
        _MANIFEST.validate_python(manifest)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadInput(f"{path}: {key:.80} is not as runs have it; it is damaged") from None
    return manifest


def _check_digest(path: Path, digest: str) -> None:
    """Refuse a file that is not what the run wrote, before anything is made of it."""
    try:
        found = sha256_of(path)
    except OSError:
        raise BadInput(f"{path}: cannot be read; it is damaged, repeat the run") from None
    if found != digest:
        raise BadInput(
            f"{path}: not as the run wrote it; it was damaged or changed, repeat the run"
        )


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadInput(f"{path}: cannot be read; it is damaged, repeat the run") from None


def _parsed(path: Path) -> dict[str, Any]:
    """A JSON file that holds keys and values."""
    text = _text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: holds no keys and values; it is damaged, repeat the run")
    return found


def _frame(path: Path, columns: Mapping[str, bool], *, needed_only: bool = False) -> pl.DataFrame:
    """A Parquet file that has these columns; the values say whether they are numbers."""
    try:
        schema = pl.read_parquet_schema(path)
        # the frame of advertisers is large, and has columns that the page does without
        wanted = [name for name in schema if name in columns] if needed_only else None
        frame = pl.read_parquet(path, columns=wanted)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise BadInput(f"{path}: cannot be read; it is damaged, repeat the run") from None
    for name, numeric in columns.items():
        kind = schema.get(name)
        if kind is None or (kind != pl.Null and kind.is_numeric() != numeric):
            raise BadInput(f"{path}: no column {name} as runs have it; it is damaged or another's")
    if not frame.height:
        raise BadInput(f"{path}: has no rows; it is damaged, repeat the run")
    return frame


_MANIFEST = TypeAdapter(Manifest)

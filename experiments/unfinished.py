"""A run's unfinished work: in a folder beside its results, until these are whole.

`results/default-seed0.unfinished/` belongs to `results/default-seed0/`, which is not touched before
the new results are complete. It holds `run.json` (scenario and seed, so that `admarket run
--resume` needs nothing else) and a folder of checkpoints for each mechanism (`market.checkpoint`).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from experiments.interrupts import noted
from market.checkpoint import EVERY, Checkpoints
from market.errors import BadInput, Stopped
from market.model import MarketModel
from market.result import Result
from market.scenario import Scenario

SUFFIX = ".unfinished"
SCHEMA = 1
_ABOUT = "run.json"


def folder_of(results: Path) -> Path:
    """Where unfinished work of a results folder lies: beside it.

    Raises:
        BadInput: a folder without a name.
    """
    results = named(results)
    if not results.name:
        raise BadInput(f"{results} is no place for results; give a folder of its own")
    return results.with_name(results.name + SUFFIX)


def named(folder: Path) -> Path:
    """`folder` as it was given where that ends with its name, else (`.`, `..`) in full."""
    return folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))


def to_finish(given: str) -> list[str]:
    """How to finish the run of results folder `given`, if one was begun."""
    folder = named(Path(given))
    work = folder if folder.name.endswith(SUFFIX) else folder.parent / (folder.name + SUFFIX)
    begun_there = os.path.exists(work / _ABOUT)  # as opposed to `Path.exists`, of any string
    return [f"to finish the run: admarket run --resume {shlex.quote(given)}"] * begun_there


def refuse_results(given: str) -> None:
    """Where a run's folder is given for a scenario, say what can be done with it.

    Raises:
        BadInput: `given` holds a run, finished or not.
    """
    ways = []
    # as opposed to `Path.exists`, this is of any string
    if os.path.exists(named(Path(given)) / "rounds.parquet"):
        ways.append(f"to see them: admarket report {shlex.quote(given)}")
    if ways := [*ways, *to_finish(given)]:
        raise BadInput(f"{given}: is no scenario, but a folder of results; {'; '.join(ways)}")


def begun(given: Path) -> tuple[Path, Scenario, int]:
    """The results folder, scenario and seed of the unfinished run that `given` names.

    Args:
        given: the results folder, or the unfinished work's own.

    Raises:
        BadInput: there is no unfinished run, or `run.json` is damaged.
    """
    given = results = named(given)
    if given.name.endswith(SUFFIX) and _about(given) is not None:
        results = given.with_name(given.name.removesuffix(SUFFIX))
    folder = folder_of(results)
    about = _about(folder)
    if about is None:
        there = f"the run there is finished, see {results / 'report.html'}"
        if not (results / "report.html").exists():
            there = "begin one with admarket run SCENARIO"
        raise BadInput(f"--resume {given}: {folder} holds no unfinished run; {there}")
    return (
        results,
        Scenario.from_dict(about["scenario"], source=str(folder / _ABOUT)),
        about["seed"],
    )


def described(model: MarketModel) -> str:
    """A line that says which market begins."""
    scenario, name = model.scenario, model.ledger.label
    return f"market: {scenario.rounds} rounds x {scenario.replications} under {name}"


class Unfinished:
    """The unfinished work of one run, which nobody else works on meanwhile; a context.

    Leaving the context gives it free, and removes it if there is nothing in it to go on from.

    Args:
        results: the results folder.
        scenario: of the run.
        seed: of the run.
        every: seconds between checkpoints.
        say: told in a line what is going on.

    Raises:
        BadInput: the folder cannot be written, is no unfinished run or that of another one, or
            another process works on it.
    """

    def __init__(
        self,
        results: Path,
        scenario: Scenario,
        seed: int,
        *,
        every: float = EVERY,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.results = results
        self.folder = folder_of(results)
        self._scenario = scenario.model_dump(mode="json")
        self._seed = seed
        self._every = every
        self._say = say
        self._lock = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is None:
            return
        if not self.holds_work:
            with contextlib.suppress(OSError):  # a full disk, say, which has been told of
                self.remove()
        self._release()

    @property
    def holds_work(self) -> bool:
        """Whether there is anything to go on from: a checkpoint, or a live round's journal."""
        return any(any(self.folder.glob(f"*/{name}")) for name in ("checkpoint-*.json", "*journal"))

    @property
    def way_on(self) -> str:
        """What a user does to go on."""
        if not self.holds_work:
            return "nothing was overwritten, and replies recorded so far are kept: run it again"
        return f"go on with: admarket run --resume {shlex.quote(str(self.results))}"

    def arm(self, number: int, name: str) -> Path:
        """The folder of the mechanism `name`, the run's `number`-th."""
        return self.folder / f"{number}-{name}"

    def play(self, model: MarketModel, number: int, progress: bool = False) -> Result:
        """Play the market of the run's `number`-th mechanism to its end, from where it was.

        Raises:
            Stopped: by Ctrl-C or SIGTERM, or because a checkpoint cannot be written.
            BadInput: as `Checkpoints.resume`.
        """
        name = model.ledger.label
        kept = Checkpoints(
            self.arm(number, name), model, every=self._every, say=self._say,
            belongs={"scenario": _digest(self._scenario)}, whole=self.folder,
        )  # fmt: skip
        if at := kept.resume():
            self._say(
                f"going on at round {at:,} of {name}; remove {self.folder} to begin anew"
                if model.running
                else f"{name}: all {at:,} rounds are played"
            )
        else:
            self._say(described(model))
        with noted() as asked_to_stop:

            def after_round() -> None:
                kept()
                if asked_to_stop():
                    kept.write()
                    raise Stopped(f"stopped after round {model.round:,} of {name}; {self.way_on}")

            result = model.run(progress=progress, after_round=after_round)
        if asked_to_stop():  # when all was played, and frames were being made
            raise Stopped(f"stopped after the last round of {name}; {self.way_on}")
        return result

    def remove(self) -> None:
        """The results are whole: nothing is unfinished any more."""
        # in one move, so that a folder of this name is never half removed
        trash = tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}-")
        os.replace(self.folder, Path(trash) / "finished")
        self._release()
        shutil.rmtree(trash, ignore_errors=True)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> int:
        """Make or take over the folder; returns a file descriptor that locks it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(self.folder)
        except OSError as error:
            raise BadInput(
                f"{self.folder}: cannot be written ({error.strerror}); choose another --out"
            ) from None
        try:
            self._take_over()
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _take_over(self) -> None:
        about = {"schema": SCHEMA, "scenario": self._scenario, "seed": self._seed}
        for trash in self.folder.parent.glob(f".{glob.escape(self.folder.name)}-*"):
            shutil.rmtree(trash, ignore_errors=True)  # of a run that was killed at its very end
        known = _about(self.folder)
        if known is None and set(os.listdir(self.folder)) - {f".{_ABOUT}.new"}:
            raise BadInput(
                f"{self.folder} is no unfinished run; rename it, or choose another --out"
            )
        if known is not None and known != about and self.holds_work:
            raise BadInput(
                f"{self.folder} holds unfinished work of another run "
                f"({known['scenario'].get('name')}, seed {known['seed']}); "
                f"finish it with --resume, remove it, or choose another --out"
            )
        if known != about:
            fresh = self.folder / f".{_ABOUT}.new"
            try:
                fresh.write_text(_sealed(about), encoding="utf-8")
                os.replace(fresh, self.folder / _ABOUT)
            except OSError as error:
                raise BadInput(
                    f"{self.folder}: cannot be written ({error.strerror}); choose another --out"
                ) from None


def _about(folder: Path) -> dict | None:
    """What `run.json` says, without its digest; None if there is none.

    Raises:
        BadInput: it is damaged, or of another schema.
    """
    path = folder / _ABOUT
    try:
        sealed = json.loads(path.read_bytes())
        digest, schema = sealed.pop("sha256"), sealed["schema"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise BadInput(f"{path} is damaged; remove {folder} to begin anew") from None
    if schema != SCHEMA:
        raise BadInput(
            f"{path} has schema {schema!r:.20}, this version reads {SCHEMA}; go on with the "
            f"version that wrote it, or remove {folder} to begin anew"
        )
    if digest != _digest(sealed):
        raise BadInput(f"{path} is damaged; remove {folder} to begin anew")
    return sealed


def _sealed(about: dict) -> str:
    return json.dumps({**about, "sha256": _digest(about)}, indent=1) + "\n"


def _digest(plain: dict) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _locked(folder: Path) -> int:
    """A file descriptor that locks the folder for this process alone, until it is closed.

    Raises:
        BadInput: another process has it.
    """
    while True:
        lock = os.open(folder, os.O_RDONLY)
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise BadInput(
                f"another process works on {folder}; wait for it, or choose another --out"
            ) from None
        except (ImportError, OSError):  # no locks here: then nobody is kept out
            return lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(folder)):
                return lock
        os.close(lock)  # its last owner removed it between our opening and our locking
        folder.mkdir(parents=True, exist_ok=True)

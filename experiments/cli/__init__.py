"""The command `admarket`; exit codes 0 done, 1 the run failed, 2 bad input (one line)."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

# Threads that spin while they wait make two programs on the same cores slow each other down many
# times over; sleeping costs a tenth where there is only one. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from experiments.cli import markets, questions, tools  # noqa: F401 (they register their commands)
from experiments.cli.options import app, say
from experiments.interrupts import terminable
from market.errors import Stopped
from mechanisms.errors import BadInput
from mechanisms.gibbs import LowEffectiveSampleSize

INTERRUPTED = 130
"""What Typer returns in place of a `KeyboardInterrupt`."""
# Typer brings its own click, whose base class of usage errors it does not name.
USAGE_ERROR = typer.BadParameter.__base__


def main() -> None:
    """Entry point of the console command."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mechanisms").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    # A market checks its weights every round; once is enough.
    warnings.simplefilter("once", LowEffectiveSampleSize)
    try:
        with terminable():
            code = app(standalone_mode=False)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            sys.exit(code)
    except Stopped as stopped:
        say(f"admarket: {stopped}")
        sys.exit(1)
    except BadInput as error:
        say(f"admarket: {' '.join(str(error).splitlines())}")  # it may quote a path of two lines
        sys.exit(2)
    except USAGE_ERROR as error:
        say(f"admarket: {' '.join(error.format_message().split())} (see admarket --help)")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        say("admarket: interrupted; nothing was overwritten")
        sys.exit(1)
    except Exception as error:  # the last line of defence: one line, and the trace on request
        if os.environ.get("ADMARKET_DEBUG"):
            raise
        first = (str(error).splitlines() or [""])[0]
        say(
            f"admarket: the run failed at {_place(error)}, {type(error).__name__}: {first} "
            "(set ADMARKET_DEBUG=1 for the trace)"
        )
        sys.exit(1)


def _place(error: Exception) -> str:
    """File and line of the last call in code that is no installed library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"

"""Where and with what a result was made."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPORTED = ("admarket", "mesa", "numpy", "polars", "torch", "transformers", "scipy", "seaborn")


def where() -> dict[str, Any]:
    """Revision, versions and machine, for a manifest."""
    return {
        "revision": _revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in REPORTED},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of this source tree, with `+` if it was changed since; None outside one."""
    here = Path(__file__).parent
    try:
        describe = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(describe, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None

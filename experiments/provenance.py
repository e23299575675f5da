"""Where and with what a result was made."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mechanisms.kernels import kernel

REPORTED = (
    "admarket", "mesa", "numpy", "numba", "polars", "torch", "transformers", "scipy", "seaborn",
)  # fmt: skip


def where() -> dict[str, Any]:
    """Revision, versions, kernel and machine, for a manifest: what the bytes of a run depend on.

    Raises:
        BadInput: the environment names no kernel (`mechanisms.kernels`).
    """
    return {
        "revision": _revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in REPORTED},
        "kernel": kernel(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
    }


def _processor() -> str | None:
    """The processor's model, whose instructions compiled code is made of; None if not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or None
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None
    )


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

"""`admarket compare`: mechanisms against the share of value maximizers and learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.compare.report import Comparison, compare

__all__ = ["Comparison", "compare", "run_compare"]


def run_compare(*args: Any, **keywords: Any) -> Path:
    """See `experiments.compare.page.run_compare`; imported when it is needed, with the figures."""
    from experiments.compare.page import run_compare

    return run_compare(*args, **keywords)

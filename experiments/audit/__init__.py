"""`admarket audit`: incentive compatibility and individual rationality of any mechanism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.audit.report import AuditReport, audit

__all__ = ["AuditReport", "audit", "run_audit"]


def run_audit(*args: Any, **keywords: Any) -> Path:
    """See `experiments.audit.run.run_audit`; imported when it is needed, with figures and LLM."""
    from experiments.audit.run import run_audit

    return run_audit(*args, **keywords)

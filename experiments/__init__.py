"""What one asks of a market: run it, audit it, find its equilibria, compare mechanisms, report.

The three functions stand here under the names of the packages that hold them. They are imported at
once, since a package that is imported later would take its name back.
"""

from experiments.audit import audit
from experiments.compare import compare
from experiments.equilibrium import equilibrium

__all__ = ["audit", "compare", "equilibrium"]

"""The report of a run: one HTML page for a co-author, made of its results folder alone.

`build` draws the figures and writes the page into a folder that holds a run's files; `rebuild` does
so again for a finished one. Both read files only, so a rebuilt page is the original. `records.py`
is what is read, `summary.py` the sentences on top, `captions.py` what figures show, `rows.py` the
tables, `wording.py` how numbers and sources are told.
"""

from experiments.report.render import build, rebuild
from experiments.report.rows import period_rows
from experiments.report.wording import (
    estimates_label,
    number,
    pool_facts,
    pool_measures,
    replies_label,
)

__all__ = [
    "build",
    "estimates_label",
    "number",
    "period_rows",
    "pool_facts",
    "pool_measures",
    "rebuild",
    "replies_label",
]

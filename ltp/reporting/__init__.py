"""Finished runs side by side: tables, files and figures. Needs neither Hydra nor Lightning.

``collect`` finds and reads the runs, ``rows`` makes comparable groups and their rows of them, ``text`` says a row in
words; ``table``, ``documents`` and ``figures`` show them.
"""

from ltp.reporting.collect import Collection, LeftOut, Run, collect
from ltp.reporting.documents import summary_markdown, summary_tex, table_of_runs
from ltp.reporting.figures import draw
from ltp.reporting.rows import Group, Row, compare
from ltp.reporting.table import comparison, left_out

__all__ = [
    "Collection",
    "Group",
    "LeftOut",
    "Row",
    "Run",
    "collect",
    "compare",
    "comparison",
    "draw",
    "left_out",
    "summary_markdown",
    "summary_tex",
    "table_of_runs",
]

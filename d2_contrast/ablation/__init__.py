"""Ablations: a matrix of runs, rows times seeds, that is planned, run, resumed and collected into one table."""

from .. import _detectron2, _visualize  # noqa: F401 (a check, so it comes first)
from .plot import draw_differences
from .progress import Progress
from .records import Store
from .report import describe_plan, write_tables
from .runner import Failure, Runner, Slot
from .spec import AblationError, Row, Run, Spec, check_labels, read_spec
from .statistics import Difference, Summary, paired_difference, summarize
from .table import Table, build_tables, to_csv, to_latex, to_markdown

__all__ = [
    "Difference",
    "Failure",
    "Progress",
    "Row",
    "Run",
    "Runner",
    "Slot",
    "Spec",
    "AblationError",
    "Store",
    "Summary",
    "Table",
    "build_tables",
    "check_labels",
    "describe_plan",
    "draw_differences",
    "paired_difference",
    "read_spec",
    "summarize",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_tables",
]

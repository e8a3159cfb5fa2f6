"""Analysis of trained runs: measures of their features, and runs side by side."""

from .. import _detectron2, _visualize  # noqa: F401 (a check, so it comes first)
from .comparison import check_comparable, compare_runs, summary, write_comparison
from .features import analyze_features, draw_features, features_markdown, write_features
from .page import write_page
from .runs import TrainedRun, common_dataset, load_runs

__all__ = [
    "TrainedRun",
    "analyze_features",
    "check_comparable",
    "common_dataset",
    "compare_runs",
    "draw_features",
    "features_markdown",
    "load_runs",
    "summary",
    "write_comparison",
    "write_features",
    "write_page",
]

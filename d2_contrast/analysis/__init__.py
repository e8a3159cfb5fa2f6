"""What trained runs are worth: their features measured, two runs side by side."""

from .. import _detectron2  # noqa: F401, first
from ..visualize import _packages  # noqa: F401, first
from .comparison import check_comparable, compare_runs, summary, write_comparison
from .features import analyze_features, draw_features, features_markdown, write_features
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
]

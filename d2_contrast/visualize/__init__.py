"""Pictures of a run, drawn without a display."""

from .. import _detectron2, _visualize  # noqa: F401 (a check, so it comes first)
from .calibration import draw_calibration
from .confusion import draw_confusion
from .curves import draw_anchors, draw_curves, draw_shared_curves, read_metrics
from .embedding import draw_embeddings, draw_joint_embeddings
from .predictions import Sample, draw_predictions
from .report import write_report
from .samples import draw_samples
from .style import save

__all__ = [
    "Sample",
    "draw_anchors",
    "draw_calibration",
    "draw_confusion",
    "draw_curves",
    "draw_embeddings",
    "draw_joint_embeddings",
    "draw_predictions",
    "draw_samples",
    "draw_shared_curves",
    "read_metrics",
    "save",
    "write_report",
]

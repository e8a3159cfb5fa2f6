"""A folder of somebody's own, looked at: which images have which label maps, what these hold, which config fits."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)

# isort: split
from .classes import Classes, choose_classes, read_class_file
from .labels import LabelScan, scan_labels
from .layout import Layout, Sample, find_layout, name_of
from .proposal import Proposal, propose

__all__ = [
    "Classes",
    "LabelScan",
    "Layout",
    "Proposal",
    "Sample",
    "choose_classes",
    "find_layout",
    "name_of",
    "propose",
    "read_class_file",
    "scan_labels",
]

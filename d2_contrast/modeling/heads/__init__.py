"""Semantic segmentation heads. Importing this package registers them, and Detectron2's DeepLab heads."""

import detectron2.projects.deeplab  # noqa: F401

from .auxiliary import build_aux_head
from .base import SemSegHead
from .deep_supervision import DeepSupervisionHead
from .deeplabv3 import ASPPHead
from .fcn import FCNHead
from .ocr import OCRHead
from .uper_hrnet import HRNetHead, UPerHead

__all__ = [
    "ASPPHead",
    "DeepSupervisionHead",
    "FCNHead",
    "HRNetHead",
    "OCRHead",
    "SemSegHead",
    "UPerHead",
    "build_aux_head",
]

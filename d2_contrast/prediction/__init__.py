"""Predictions of trained networks on images and videos from anywhere."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)
from .images import to_rgb
from .segmentation import Segmentation, draw_overlay
from .segmentor import Segmentor

__all__ = ["Segmentation", "Segmentor", "draw_overlay", "to_rgb"]

"""Networks. Importing this package registers its parts with Detectron2."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)
from . import backbone, heads
from .meta_arch import ContrastiveSegmentor, build_contrast
from .pixel_losses import PIXEL_LOSS_REGISTRY, ValidPixels, build_pixel_loss

__all__ = [
    "PIXEL_LOSS_REGISTRY",
    "ContrastiveSegmentor",
    "ValidPixels",
    "backbone",
    "build_contrast",
    "build_pixel_loss",
    "heads",
]

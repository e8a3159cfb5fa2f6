"""Networks. Importing this package registers its parts with Detectron2."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)
from . import backbone, heads
from .meta_arch import ContrastiveSegmentor
from .pixel_losses import PIXEL_LOSS_REGISTRY, build_pixel_loss

__all__ = ["PIXEL_LOSS_REGISTRY", "ContrastiveSegmentor", "backbone", "build_pixel_loss", "heads"]

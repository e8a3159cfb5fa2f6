"""Supervised dense contrastive learning over several scales; needs PyTorch alone."""

from .anchors import sample_anchors
from .criterion import MultiScaleContrast
from .info_nce import supervised_info_nce
from .projector import Projector

__all__ = ["MultiScaleContrast", "Projector", "sample_anchors", "supervised_info_nce"]

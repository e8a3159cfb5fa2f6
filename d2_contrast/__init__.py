"""Multi-scale and cross-scale contrastive losses for semantic segmentation with Detectron2.

Importing this package registers nothing and needs torch alone, so that ``d2_contrast.contrast`` can be used in any
trainer. ``d2_contrast.config``, ``d2_contrast.modeling`` and ``d2_contrast.data`` register their parts with Detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__version__ = "0.1.0"


def get_config(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Return a config of this project by its name, such as "shapes/uper_r18_contrast", or of a file by its path.

    Args and Raises as :func:`d2_contrast.config.load_config`, and ImportError where Detectron2 is missing.
    """
    from .config import load_config

    return load_config(name, overrides)

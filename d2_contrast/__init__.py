"""Multi-scale and cross-scale contrastive losses for semantic segmentation with Detectron2.

Importing this package registers nothing and needs torch alone, so that ``d2_contrast.contrast`` can be used in any
trainer. ``d2_contrast.config``, ``d2_contrast.modeling`` and ``d2_contrast.data`` register their parts with Detectron2.
"""

__version__ = "0.1.0"

"""The auxiliary head of a config."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_sem_seg_head
from torch import nn

from ..features import select_features


def build_aux_head(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """Build the head that MODEL.AUX_HEAD names, any one in Detectron2's registry of semantic segmentation heads.

    A head reads its settings from MODEL.SEM_SEG_HEAD. It gets a config in which the keys of MODEL.AUX_HEAD and the
    pixel loss MODEL.PIXEL_LOSS.AUX_NAME replace those of the main head.

    Raises:
        ValueError: there is no such head, the backbone does not give its feature maps, or it refuses its settings.
    """
    aux, key = cfg.MODEL.AUX_HEAD, "MODEL.AUX_HEAD."
    if aux.NAME not in SEM_SEG_HEADS_REGISTRY:
        known = sorted(name for name, _ in SEM_SEG_HEADS_REGISTRY)
        raise ValueError(f"{key}NAME is {aux.NAME!r}: expected one of {known}, or '' for no auxiliary head")
    shapes = select_features(input_shape, aux.IN_FEATURES, key + "IN_FEATURES")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.update(aux)
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = min(shape.stride for shape in shapes.values())
    cfg.MODEL.PIXEL_LOSS.NAME = cfg.MODEL.PIXEL_LOSS.AUX_NAME or cfg.MODEL.PIXEL_LOSS.NAME
    try:
        return build_sem_seg_head(cfg, input_shape)
    except (AssertionError, ValueError) as error:
        message = str(error).replace("MODEL.SEM_SEG_HEAD.", key) or "a check of its own failed"
        raise ValueError(
            f"{key}NAME {aux.NAME!r} cannot be built on {key}IN_FEATURES {list(shapes)}: {message}"
        ) from error

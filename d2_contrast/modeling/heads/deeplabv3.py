"""The head of DeepLabv3 (Chen et al., 2017): atrous spatial pyramid pooling and a classifier."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..layers import allow_single_values
from .base import SemSegHead


@SEM_SEG_HEADS_REGISTRY.register()
class ASPPHead(SemSegHead):
    """Detectron2's ASPP on one feature map, then a classifier.

    Unlike Detectron2's DeepLabV3Head it pools over the whole image whatever its size, and trains with any pixel loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 256,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.0,
        norm: str = "BN",
        **kwargs,
    ):
        """
        Args:
            input_shape: one feature map by name.
            num_classes: K.
            channels: width of each branch and of the fused map.
            dilations: of the three atrous branches, in positions of the feature map.
            dropout: probability of dropping an entry of the fused map.
            norm: normalisation layer by Detectron2's name; "" for none.
            kwargs: see SemSegHead.

        Raises:
            ValueError: there is more than one feature map.
        """
        super().__init__(input_shape, **kwargs)
        if len(input_shape) != 1:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(input_shape)}: ASPPHead reads one feature map")
        (shape,) = input_shape.values()
        self.aspp = allow_single_values(
            ASPP(shape.channels, channels, list(dilations), norm=norm, activation=F.relu, dropout=dropout)
        )
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "channels": head.ASPP_CHANNELS,
            "dilations": head.ASPP_DILATIONS,
            "dropout": head.ASPP_DROPOUT,
        }

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.predictor(self.aspp(features[self.in_features[0]]))

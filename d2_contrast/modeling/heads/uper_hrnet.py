"""Heads that fuse feature maps of several strides by one convolution: UPerNet's and HRNet's."""

from collections.abc import Mapping

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..layers import concat_at_finest, conv_norm_relu
from .base import SemSegHead


class FusionHead(SemSegHead):
    """All maps at the size of the finest, concatenated, fused by a convolution, classified."""

    KERNEL_SIZE: int

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int,
        dropout: float = 0.0,
        norm: str = "BN",
        **kwargs,
    ):
        """
        Args:
            input_shape: feature maps by name, fine to coarse.
            num_classes: K.
            channels: width of the fused map.
            dropout: probability of dropping a channel of it.
            norm: normalisation layer by Detectron2's name; "" for none.
            kwargs: see SemSegHead.
        """
        super().__init__(input_shape, **kwargs)
        in_channels = sum(shape.channels for shape in input_shape.values())
        self.fuse = conv_norm_relu(in_channels, channels, self.KERNEL_SIZE, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        x = concat_at_finest([features[name] for name in self.in_features])
        return self.predictor(self.dropout(self.fuse(x)))


@SEM_SEG_HEADS_REGISTRY.register()
class UPerHead(FusionHead):
    """The head of UPerNet (Xiao et al., ECCV 2018) over the pyramid that UPerFPN gives."""

    KERNEL_SIZE = 3


@SEM_SEG_HEADS_REGISTRY.register()
class HRNetHead(FusionHead):
    """The head of HRNetV2 (Wang et al., TPAMI 2020) over the branches of an HRNet."""

    KERNEL_SIZE = 1

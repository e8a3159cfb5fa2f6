"""Heads that fuse feature maps of several strides by one convolution: UPerNet's and HRNet's."""

from collections.abc import Mapping

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..features import group_by_stride, maps_by_stride
from ..layers import conv_norm_relu
from ..multi_scale_conv import MultiScaleConv2d
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
        self.names_by_stride = group_by_stride(input_shape)
        in_channels = sum(shape.channels for shape in input_shape.values())
        self.fuse = conv_norm_relu(in_channels, channels, self.KERNEL_SIZE, norm, MultiScaleConv2d)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        x = self.fuse(maps_by_stride(features, self.names_by_stride))
        return self.predictor(self.dropout(x))


@SEM_SEG_HEADS_REGISTRY.register()
class UPerHead(FusionHead):
    """The head of UPerNet (Xiao et al., ECCV 2018) over the pyramid that UPerFPN gives."""

    KERNEL_SIZE = 3


@SEM_SEG_HEADS_REGISTRY.register()
class HRNetHead(FusionHead):
    """The head of HRNetV2 (Wang et al., TPAMI 2020) over the branches of an HRNet."""

    KERNEL_SIZE = 1

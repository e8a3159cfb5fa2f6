"""The auxiliary head of PSPNet and UPerNet: one convolution and a classifier on one feature map."""

from collections.abc import Mapping

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..layers import conv_norm_relu
from .base import SemSegHead


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(SemSegHead):
    """3x3 convolution, dropout, classifier."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 256,
        dropout: float = 0.1,
        norm: str = "BN",
        **kwargs,
    ):
        """
        Args:
            input_shape: one feature map by name.
            num_classes: K.
            channels: width of the hidden map.
            dropout: probability of dropping a channel of it.
            norm: normalisation layer by Detectron2's name; "" for none.
            kwargs: see SemSegHead.

        Raises:
            ValueError: there is more than one feature map.
        """
        super().__init__(input_shape, **kwargs)
        if len(input_shape) != 1:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(input_shape)}: FCNHead reads one feature map")
        (shape,) = input_shape.values()
        self.conv = conv_norm_relu(shape.channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.predictor(self.dropout(self.conv(features[self.in_features[0]])))

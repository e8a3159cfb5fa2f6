"""The head of OCRNet (Yuan et al., ECCV 2020): context from soft object regions."""

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..features import group_by_stride, maps_by_stride, select_features
from ..layers import conv_norm_relu, resize
from ..multi_scale_conv import MultiScaleConv2d
from ..pixel_losses import build_pixel_loss
from .base import SemSegHead


class ObjectAttention(nn.Module):
    """Context of each pixel: features of the object regions, weighted by their similarity (Eq. 3 and 4)."""

    def __init__(self, channels: int, key_channels: int, norm: str):
        super().__init__()
        self.query = _two_layers(channels, key_channels, norm)
        self.key = _two_layers(channels, key_channels, norm)
        self.value = conv_norm_relu(channels, key_channels, 1, norm)
        self.output = conv_norm_relu(key_channels, channels, 1, norm)

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """Map pixels (N, C, h, w) and regions (N, C, K, 1) to the context of the pixels, (N, C, h, w)."""
        query = self.query(pixels).flatten(2).transpose(1, 2)  # (N, hw, D)
        key = self.key(regions).flatten(2)  # (N, D, K)
        value = self.value(regions).flatten(2).transpose(1, 2)  # (N, K, D)
        with torch.autocast(pixels.device.type, enabled=False):
            weights = (query.float() @ key.float() * key.shape[1] ** -0.5).softmax(dim=-1)
            context = (weights @ value.float()).transpose(1, 2).unflatten(2, pixels.shape[-2:])
        return self.output(context)


@SEM_SEG_HEADS_REGISTRY.register()
class OCRHead(SemSegHead):
    """OCRNet's head: pixels attend to the mean features of object regions.

    A first prediction, which is supervised too, says which pixels belong to the region of each class.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        aux_input_shape: Mapping[str, ShapeSpec],
        aux_pixel_loss: nn.Module,
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        aux_channels: int = 720,
        aux_kernel_size: int = 1,
        aux_loss_weight: float = 0.4,
        dropout: float = 0.05,
        norm: str = "BN",
        **kwargs,
    ):
        """
        Args:
            input_shape: feature maps by name, fine to coarse, of which pixel features are made.
            aux_input_shape: feature maps from which the first prediction is made; the first one has the same stride.
            aux_pixel_loss: loss of the first prediction.
            num_classes: K.
            channels: width of pixel and region features.
            key_channels: width in which pixels and regions are compared.
            aux_channels: width of the hidden map of the first prediction.
            aux_kernel_size: of the convolution before that map.
            aux_loss_weight: factor of the loss of the first prediction.
            dropout: probability of dropping a channel before the classifier.
            norm: normalisation layer by Detectron2's name; "" for none.
            kwargs: see SemSegHead.

        Raises:
            ValueError: these strides differ.
        """
        super().__init__(input_shape, **kwargs)
        self.names_by_stride, self.aux_names_by_stride = group_by_stride(input_shape), group_by_stride(aux_input_shape)
        if next(iter(aux_input_shape.values())).stride != self.common_stride:
            raise ValueError(
                f"MODEL.OCR.AUX_IN_FEATURES is {list(aux_input_shape)}: the stride of the first must be that of "
                f"the first of {list(input_shape)}, {self.common_stride}"
            )
        self.aux = nn.Sequential(
            conv_norm_relu(_channels(aux_input_shape), aux_channels, aux_kernel_size, norm, MultiScaleConv2d),
            nn.Conv2d(aux_channels, num_classes, 1),
        )
        self.pixels = conv_norm_relu(_channels(input_shape), channels, 3, norm, MultiScaleConv2d)
        self.attention = ObjectAttention(channels, key_channels, norm)
        self.fuse = conv_norm_relu(2 * channels, channels, 1, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        self.aux_pixel_loss = aux_pixel_loss
        self.aux_loss_weight = aux_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        args, ocr = super().from_config(cfg, input_shape), cfg.MODEL.OCR
        return {
            **args,
            "aux_input_shape": select_features(
                input_shape, ocr.AUX_IN_FEATURES or args["input_shape"], "MODEL.OCR.AUX_IN_FEATURES"
            ),
            "aux_pixel_loss": build_pixel_loss(cfg, auxiliary=True),
            "key_channels": ocr.KEY_CHANNELS,
            "aux_channels": ocr.AUX_CHANNELS,
            "aux_kernel_size": ocr.AUX_KERNEL_SIZE,
            "aux_loss_weight": ocr.AUX_LOSS_WEIGHT,
        }

    def layers(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | Tensor:
        """Map features to logits (N, K, h, w); in training to those and the logits of the first prediction."""
        aux_logits = self.aux(maps_by_stride(features, self.aux_names_by_stride))
        pixels = self.pixels(maps_by_stride(features, self.names_by_stride))
        with torch.autocast(pixels.device.type, enabled=False):
            shares = aux_logits.float().flatten(2).softmax(dim=-1)  # (N, K, hw), of each pixel in a class's region
            regions = shares @ pixels.float().flatten(2).transpose(1, 2)  # (N, K, C)
        context = self.attention(pixels, regions.transpose(1, 2).unsqueeze(3))
        logits = self.predictor(self.dropout(self.fuse(torch.cat([context, pixels], dim=1))))
        return (logits, aux_logits) if self.training else logits

    def losses(self, logits: tuple[Tensor, Tensor], targets: Tensor) -> dict[str, Tensor]:
        logits, aux_logits = logits
        aux_loss = self.aux_pixel_loss(resize(aux_logits.float(), targets.shape[-2:]), targets)
        return {**super().losses(logits, targets), "loss_aux_sem_seg": self.aux_loss_weight * aux_loss}


def _channels(shapes: Mapping[str, ShapeSpec]) -> int:
    return sum(shape.channels for shape in shapes.values())


def _two_layers(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(conv_norm_relu(in_channels, channels, 1, norm), conv_norm_relu(channels, channels, 1, norm))

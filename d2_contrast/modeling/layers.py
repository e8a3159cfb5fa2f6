"""Layers that several parts of the networks share."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import Tensor


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution that keeps the size, normalisation (none if ``norm`` is "") and ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, C, h, w) to (N, C, *size), bilinear, with pixels as areas."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def concat_at_finest(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate maps (N, C_i, h_i, w_i) along the channels, at the size of the first."""
    finest, *others = maps
    return torch.cat([finest, *(resize(x, finest.shape[-2:]) for x in others)], dim=1)

"""Layers that several parts of the networks share."""

from collections.abc import Sequence
from functools import partial

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, NaiveSyncBatchNorm, get_norm
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, conv_class: type[Conv2d] = Conv2d
) -> Conv2d:
    """A convolution that keeps the size, normalisation (none if ``norm`` is "") and ReLU."""
    conv = conv_class(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return allow_single_values(conv)


def allow_single_values(module: nn.Module) -> nn.Module:
    """Let the batch norms of ``module`` train on one value per channel, as a batch of one gives to a map of 1 x 1.

    A single value has no statistics: torch refuses it. The norms use their running statistics there, as they do at
    inference, and leave them as they are. All other inputs are normalised as before.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = partial(_normalise, norm)
    return module


def _normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    count = x.numel() // x.shape[1]
    if isinstance(norm, (nn.SyncBatchNorm, NaiveSyncBatchNorm)):
        count *= comm.get_world_size()
    if not norm.training or count != 1:
        return type(norm).forward(norm, x)
    norm.training = False
    try:
        return type(norm).forward(norm, x)
    finally:
        norm.training = True


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, C, h, w) to (N, C, *size), bilinear, with pixels as areas."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def fit_to_grid(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) that its stride promises, with each position where it belongs.

    A smaller map comes from convolutions without padding, which do not reach the border of the image: its border is
    repeated. A larger map comes from a network that stretches its input: it is resized.
    """
    kept = [min(own, wanted) for own, wanted in zip(x.shape[-2:], size)]
    if kept != list(x.shape[-2:]):
        x = resize(x, kept)
    rows, columns = (wanted - own for own, wanted in zip(kept, size))
    if not rows and not columns:
        return x
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), mode="replicate")


def concat_at_finest(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate maps (N, C_i, h_i, w_i) along the channels, at the size of the first."""
    finest, *others = maps
    return torch.cat([finest, *(resize(x, finest.shape[-2:]) for x in others)], dim=1) if others else finest

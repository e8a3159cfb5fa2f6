"""A convolution over maps of several strides."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor

from .layers import concat_at_finest

# Rows and columns that one product resizes. Larger tiles waste time on zeros of its weights, smaller ones on calls.
TILE = 64


class MultiScaleConv2d(Conv2d):
    """A convolution over maps that are resized to the first one and concatenated, without doing either.

    Resizing works on positions, the products with weights on channels, so their order is free. A coarse map is
    multiplied with the weights of all taps at its own size; the products are resized, shifted by their taps and added
    up. Values differ by rounding alone. In UPerNet, whose coarser levels have 1/4, 1/16 and 1/64 of the positions of
    the finest, this takes a third of the multiply-adds, and no map of all channels is kept.
    """

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map (N, C_i, h_i, w_i), whose C_i add up to the channels of the weights, to (N, D, h_0, w_0)."""
        if self.kernel_size == (1, 1):  # resizing its products costs what they save
            return self.forward_concatenated(maps)
        (first, weight), *others = zip(maps, self.weight.split([x.shape[1] for x in maps], dim=1))
        x = F.conv2d(first, weight, self.bias, padding=self.padding)
        if others:
            x = x + convolve_resized(others, first.shape[-2:])
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)

    def forward_concatenated(self, maps: Sequence[Tensor]) -> Tensor:
        """The same by its definition, whose operators do not depend on the size of the maps."""
        return super().forward(concat_at_finest(maps))


def convolve_resized(parts: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]) -> Tensor:
    """Sum of convolutions of maps as if they had been resized, bilinear, with pixels as areas, and padded with zeros.

    Args:
        parts: maps (N, C_i, h_i, w_i) with their weights (D, C_i, k, k), k odd.
        size: (H, W), of the resized maps.

    Returns:
        (N, D, H, W).
    """
    count, kernel_size = parts[0][0].shape[0], parts[0][1].shape[-1]
    products = [_multiply(x, weight) for x, weight in parts]
    # Tiles of one number for all sizes, where code is compiled for all of them.
    tile = max(size) if torch.compiler.is_compiling() else TILE
    rows, columns = (
        [
            [_resizing_taps(x.shape[axis], length, start, min(start + tile, length), kernel_size, x) for x, _ in parts]
            for start in range(0, length, tile)
        ]
        for axis, length in zip((2, 3), size)
    )
    resized = []
    for row_taps in rows:
        lines = [
            torch.bmm(taps.expand(count, -1, -1), x[:, reads].flatten(2)).view(-1, *x.shape[2:])
            for x, (reads, taps) in zip(products, row_taps)
        ]  # of each map (N * rows, k * w, D)
        pieces = []
        for column_taps in columns:
            taps = torch.cat([taps for _, taps in column_taps], dim=1).expand(len(lines[0]), -1, -1)
            pieces.append(torch.bmm(taps, torch.cat([x[:, reads] for x, (reads, _) in zip(lines, column_taps)], dim=1)))
        resized.append(torch.cat(pieces, dim=1).unflatten(0, (count, -1)))
    return torch.cat(resized, dim=1).permute(0, 3, 1, 2)


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Products (N, k * h, k * w, D) of a map (N, C, h, w) with each tap of weights (D, C, k, k)."""
    kernel_size = weight.shape[-1]
    taps = weight.permute(2, 3, 0, 1).flatten(0, 2)[:, :, None, None]  # (k * k * D, C, 1, 1)
    # As a convolution, since those may use TF32 where other products do not.
    products = F.conv2d(x.contiguous(memory_format=torch.channels_last), taps)
    products = products.unflatten(1, (kernel_size, kernel_size, -1)).permute(0, 4, 1, 5, 2, 3)
    return products.flatten(3, 4).flatten(1, 2)


def _resizing_taps(
    size: int, length: int, start: int, stop: int, kernel_size: int, like: Tensor
) -> tuple[slice, Tensor]:
    """Weights that resize a line for each tap of a kernel, shifted to where it reads.

    Args:
        size: positions of the line.
        length: positions of the resized line.
        start: the first of these that is wanted.
        stop: the one after the last.
        kernel_size: taps of the kernel.
        like: a tensor of the device and dtype of the weights.

    Returns:
        What they read of a line of products, kernel_size for each position, and weights (stop - start, products).
    """
    arange = partial(torch.arange, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    reads = arange(start, stop)[:, None] + arange(kernel_size) - kernel_size // 2
    centers = ((reads + 0.5) * size / length - 0.5).clamp(0, size - 1)
    first, last = (((2 * end + 1) * size - length) // (2 * length) for end in (start - kernel_size, stop + kernel_size))
    first, last = max(first, 0), min(last + 2, size)
    weights = (1 - (centers[:, None] - arange(first, last)[:, None]).abs()).clamp(min=0)
    inside = (reads >= 0) & (reads < length)
    weights = (weights * inside[:, None]).flatten(1).to(like.dtype)
    return slice(first * kernel_size, last * kernel_size), weights

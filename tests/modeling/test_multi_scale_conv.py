"""A convolution over maps of several strides against its definition: resize, concatenate, convolve."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from d2_contrast.modeling.layers import conv_norm_relu
from d2_contrast.modeling.multi_scale_conv import MultiScaleConv2d

SIZES = [
    [(16, 24), (8, 12), (4, 6), (2, 3)],
    [(15, 7), (5, 6), (1, 1)],  # no whole ratios
    [(6, 6), (3, 3), (6, 6)],  # a pooled map may have the size of the map itself
    [(4, 5), (9, 11)],  # the first is not the finest
    [(8, 8)],
    [(1, 1), (1, 1)],
    [(140, 3), (70, 2), (31, 1)],  # several tiles
    [(5, 150), (5, 75)],
]


def by_definition(conv, maps):
    resized = [F.interpolate(x, size=maps[0].shape[-2:], mode="bilinear", align_corners=False) for x in maps]
    x = F.conv2d(torch.cat(resized, 1), conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)
    return F.relu(x if conv.norm is None else conv.norm(x))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("norm", ["", "GN"])
def test_values_and_gradients_are_those_of_the_definition(sizes, kernel_size, norm):
    torch.manual_seed(0)
    channels = range(3, 3 + len(sizes))
    conv = conv_norm_relu(sum(channels), 64, kernel_size, norm, MultiScaleConv2d).double()
    maps = [torch.randn(2, c, *size, dtype=torch.float64, requires_grad=True) for c, size in zip(channels, sizes)]
    target = torch.randn(2, 64, *sizes[0], dtype=torch.float64)
    outputs, gradients = [], []
    for function in (conv, lambda maps: by_definition(conv, maps)):
        outputs.append(function(maps))
        gradients.append(torch.autograd.grad((outputs[-1] * target).sum(), [*maps, *conv.parameters()]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
    for own, expected in zip(*gradients):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rounding_is_about_that_of_the_definition(dtype, memory_format):
    torch.manual_seed(0)
    conv = conv_norm_relu(4 * 32, 32, 3, "", MultiScaleConv2d).to(memory_format=memory_format)
    maps = [torch.randn(2, 32, side, side).to(memory_format=memory_format) for side in (32, 16, 8, 4)]
    with torch.no_grad():
        exact = by_definition(conv.double(), [x.double() for x in maps])
        conv.float()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            own, expected = conv(maps), by_definition(conv, maps)
    assert own.dtype == expected.dtype == dtype
    errors = [(x.double() - exact).square().mean().sqrt() for x in (own, expected)]
    assert errors[0] < 1.5 * errors[1]


def test_less_is_computed_than_by_the_definition():
    """Multiply-adds of UPerNet's widths, by torch's own count."""
    with torch.device("meta"):
        conv = conv_norm_relu(4 * 512, 512, 3, "", MultiScaleConv2d)
        maps = [torch.empty(1, 512, side, side) for side in (64, 32, 16, 8)]
    counts = []
    for function in (conv, lambda maps: by_definition(conv, maps)):
        with FlopCounterMode(display=False) as counter:
            function(maps)
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.37 * counts[1]

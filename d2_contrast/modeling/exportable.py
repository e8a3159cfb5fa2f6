"""Segmentors in a form that can be traced: one graph for every batch, height and width.

Tracing writes down the operations of one example. What a layer computes in Python from the size of its input, such as
the bins of a pooled map or the windows of a Swin Transformer, would be written down as a number, and hold for that size
alone. The layers here compute the same from the tensors themselves.
"""

import copy
from collections.abc import Sequence

import torch
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .backbone.swin import Swin
from .backbone.timm import FEATURES
from .layers import resize
from .multi_scale_conv import MultiScaleConv2d


class ExportableSegmentor(nn.Module):
    """A copy of a segmentor that maps images to logits by tensor operations alone, for inference.

    Attributes:
        multiple: images are padded below and on the right until their sides are multiples of this, pixels.
    """

    def __init__(self, model: nn.Module, argmax: bool = False):
        """
        Args:
            model: one of Detectron2's semantic segmentors, such as ContrastiveSegmentor; it is left as it is.
            argmax: give label maps instead of logits.

        Raises:
            ValueError: it is no semantic segmentor, or pads its images to squares.
        """
        super().__init__()
        for part in ("backbone", "sem_seg_head", "pixel_mean", "pixel_std"):
            if not hasattr(model, part):
                raise ValueError(f"{type(model).__name__} has no {part}: expected a semantic segmentor")
        self.backbone = make_exportable(copy.deepcopy(model.backbone)).eval()
        self.sem_seg_head = make_exportable(copy.deepcopy(model.sem_seg_head)).eval()
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.argmax = argmax
        constraints = model.backbone.padding_constraints
        if constraints.get("square_size"):
            raise ValueError(f"{type(model.backbone).__name__} pads images to squares, which has no export")
        self.multiple = constraints.get("size_divisibility") or model.backbone.size_divisibility or 1
        # A head multiplies the size of a map by its stride, which is the size of the image only where that divides it.
        stride = getattr(model.sem_seg_head, "common_stride", 0)
        self.resize = not stride or self.multiple % stride != 0

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: (N, 3, H, W) float32 from 0 to 255, in the channel order of the model.

        Returns:
            Logits (N, K, H, W) float32, or with ``argmax`` train ids (N, H, W), int64.
        """
        height, width = images.shape[-2:]
        if not torch.jit.is_tracing():
            torch._check(height >= 1)  # tells torch.export that no map is empty
            torch._check(width >= 1)
        x = (images - self.pixel_mean) / self.pixel_std
        rows, columns = (_round_up(side, self.multiple) for side in (height, width))
        x = F.pad(x, (0, columns - width, 0, rows - height))
        with ExportableFunctions():
            logits, _ = self.sem_seg_head(self.backbone(x), None)
        if self.resize:
            logits = resize(logits, (rows, columns))
        logits = logits[:, :, :height, :width]
        return logits.argmax(1) if self.argmax else logits


def make_exportable(module: nn.Module) -> nn.Module:
    """Replace ``module``, or layers inside it, that cannot be traced for all sizes; returns what it becomes."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return AveragePool(module.output_size)
    if isinstance(module, Swin):
        return ExportableSwin(module)
    if isinstance(module, MultiScaleConv2d):
        module.forward = module.forward_concatenated
    for name, child in module.named_children():
        setattr(module, name, make_exportable(child))
    return module


class AveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d as a product with weights: those of row i are 1 / n at the n positions of bin i."""

    def __init__(self, bins: int | tuple[int, int]):
        super().__init__()
        self.bins = (bins, bins) if isinstance(bins, int) else tuple(bins)
        for name, count in zip(("rows", "columns"), self.bins):
            self.register_buffer(name, torch.arange(count)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, *bins)."""
        if self.bins == (1, 1):
            return x.mean((2, 3), keepdim=True)
        rows = _bin_weights(x[0, 0, :, 0], self.rows)
        columns = _bin_weights(x[0, 0, 0], self.columns)
        count, channels, height, width = x.shape
        x = (_copy(x).view(count * channels * height, width) @ columns.T).view(count, channels, height, -1)
        return (x[:, :, None] * rows[:, :, None]).sum(3)


class ExportableFunctions(TorchFunctionMode):
    """Computes by operators of ONNX what models of timm call: rolls, and tables of positions that fit an image.

    ONNX's counterpart of ``torch.roll`` is wrong where the shift is larger than the map. That of antialiased bicubic
    resizing does not exist before opset 18.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.roll:
            return _roll(*args, **kwargs)
        if func is F.interpolate and kwargs.get("antialias") and kwargs.get("mode") == "bicubic" and kwargs.get("size"):
            return _resample(*args, kwargs["size"])
        return func(*args, **kwargs)


class ExportableSwin(nn.Module):
    """Swin, of parts of its own."""

    def __init__(self, swin: Swin):
        super().__init__()
        self.patch_embed = swin.patch_embed
        self.stages = nn.ModuleList(SwinStage(stage) for stage in swin.layers)
        self.norms = nn.ModuleList(getattr(swin, f"norm{i}") for i in range(len(swin.layers)))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to {name: (N, C, H / stride, W / stride)}."""
        x = self.patch_embed(image)
        next_height, next_width = x.shape[2:]
        x, maps = x.flatten(2).transpose(1, 2), []
        for stage, norm in zip(self.stages, self.norms):
            tokens, height, width, x, next_height, next_width = stage(x, next_height, next_width)
            maps.append(_copy(norm(tokens).transpose(1, 2)).view(x.shape[0], -1, height, width))
        return dict(zip(FEATURES, maps))


class SwinStage(nn.Module):
    """One stage of Detectron2's SwinTransformer."""

    def __init__(self, stage: BasicLayer):
        super().__init__()
        self.blocks, self.downsample = stage.blocks, stage.downsample
        self.window, self.shift = stage.window_size, stage.shift_size

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Map (N, height * width, C) to itself and the input of the next stage, each followed by its size."""
        mask = self._mask(x.view(x.shape[0], height, width, -1))
        for block in self.blocks:
            x = self._run(block, x, height, width, mask)
        if self.downsample is None:
            return x, height, width, x, height, width
        return x, height, width, self.downsample(x, height, width), (height + 1) // 2, (width + 1) // 2

    def _run(self, block: SwinTransformerBlock, x: Tensor, height: int, width: int, mask: Tensor) -> Tensor:
        tokens = self._pad(block.norm1(x).view(x.shape[0], height, width, -1))
        rows, columns = tokens.shape[1:3]
        shift = block.shift_size
        if shift:
            tokens = tokens.roll((-shift, -shift), (1, 2))
        windows = _attend(block.attn, self._to_windows(tokens), mask if shift else None)
        down, across = rows // self.window, columns // self.window
        tokens = windows.view(x.shape[0], down, across, self.window, self.window, -1).transpose(2, 3)
        tokens = _copy(tokens).view(x.shape[0], rows, columns, -1)
        if shift:
            tokens = tokens.roll((shift, shift), (1, 2))
        x = x + _copy(tokens[:, :height, :width]).view(x.shape)
        return x + block.mlp(block.norm2(x))

    def _pad(self, tokens: Tensor) -> Tensor:
        """Pad (N, h, w, C) to whole windows."""
        height, width = tokens.shape[1:3]
        rows, columns = (_round_up(side, self.window) for side in (height, width))
        return F.pad(tokens, (0, 0, 0, columns - width, 0, rows - height))

    def _to_windows(self, tokens: Tensor) -> Tensor:
        """(N, rows, columns, C) to (N, windows, window * window, C)."""
        count, rows, columns, channels = tokens.shape
        down, across = rows // self.window, columns // self.window
        windows = tokens.view(count, down, self.window, across, self.window, channels).transpose(2, 3)
        return _copy(windows).view(count, down * across, self.window * self.window, channels)

    def _mask(self, tokens: Tensor) -> Tensor:
        """The mask between tokens that only became neighbours by the shift, (windows, window ** 2, window ** 2)."""
        tokens = self._pad(tokens)
        rows, columns = (
            sum((position >= position.amax() + 1 - border).long() for border in (self.window, self.shift))
            for position in (_positions(tokens[0, :, 0, 0]), _positions(tokens[0, 0, :, 0]))
        )
        rows, columns = (line.unflatten(0, (-1, self.window)) for line in (rows, columns))
        regions = (3 * rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        return (regions[:, :, None] != regions[:, None]).to(tokens.dtype) * -100.0


def _attend(attention: WindowAttention, windows: Tensor, mask: Tensor | None) -> Tensor:
    """Attention within windows (N, windows, tokens, C)."""
    count, number, tokens, channels = windows.shape
    heads = attention.num_heads
    qkv = attention.qkv(windows).view(count, number, tokens, 3, heads, channels // heads)
    query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
    bias = attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
    scores = (query * attention.scale) @ key.transpose(-2, -1) + bias
    if mask is not None:
        scores = scores + mask[:, None]
    return attention.proj(_copy((scores.softmax(-1) @ value).transpose(2, 3)).view(windows.shape))


def _bin_weights(line: Tensor, bins: Tensor) -> Tensor:
    """Weights (count, length) that average a line (length,) in bins 0 ... count - 1, given as (count, 1)."""
    position, count = _positions(line), bins.shape[0]
    length = position.amax() + 1
    first = (bins * length).div(count, rounding_mode="floor")
    end = ((bins + 1) * length + count - 1).div(count, rounding_mode="floor")
    inside = ((position >= first) & (position < end)).to(line.dtype)
    return inside / inside.sum(1, keepdim=True)


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
    """torch.roll as a choice of rows and columns."""
    for shift, axis in zip(shifts, dims):
        length = x.shape[axis]
        x = x.index_select(axis, (_range(x, length) - shift) % length)
    return x


def _resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """F.interpolate(x, size, mode="bicubic", antialias=True) as a product with weights."""
    height, width = size
    return _cubic_weights(x, height, x.shape[2]) @ (x @ _cubic_weights(x, width, x.shape[3]).T)


def _cubic_weights(x: Tensor, length: int, old_length: int) -> Tensor:
    """Weights (length, old_length) that resize a line, by Keys' cubic with -0.5, on the device of ``x``."""
    positions = _range(x, length).to(x.dtype)
    scale = old_length / (positions.amax() + 1)
    centers = (positions[:, None] + 0.5) * scale - 0.5
    distance = ((_range(x, old_length).to(x.dtype) - centers) / scale.clamp(min=1)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def _range(x: Tensor, length: int) -> Tensor:
    """0 ... length - 1, on the device of ``x``."""
    return _positions(x.flatten()[:1].expand(length))


def _copy(x: Tensor) -> Tensor:
    """A copy that can be viewed in any shape. Tensor.reshape would decide by the size whether to copy."""
    return x.clone(memory_format=torch.contiguous_format)


def _positions(line: Tensor) -> Tensor:
    """0, 1, ... along a line, on its device: torch.arange would write down the device of the example."""
    return torch.ones_like(line, dtype=torch.long).cumsum(0) - 1


def _round_up(side: int, multiple: int) -> int:
    return (side + multiple - 1) // multiple * multiple

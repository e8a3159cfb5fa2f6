"""The feature pyramid of UPerNet (Xiao et al., ECCV 2018) over any backbone."""

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ...config_ranges import GROUPS
from ..features import select_features
from ..layers import conv_norm_relu, resize
from ..multi_scale_conv import MultiScaleConv2d


class PyramidPooling(nn.Module):
    """Pooled context at several scales beside the map itself (Zhao et al., CVPR 2017): (N, C, h, w) to (N, D, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, pool_scales: Sequence[int], norm: str):
        super().__init__()
        if norm == "GN" and out_channels <= GROUPS and 1 in pool_scales:
            raise ValueError(
                f"MODEL.UPER.OUT_CHANNELS is {out_channels}: expected a multiple of {GROUPS}, {2 * GROUPS} or more, "
                "where MODEL.UPER.NORM is 'GN': a pooled map of one position has to have several values in a group"
            )
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(in_channels, out_channels, 1, norm))
            for scale in pool_scales
        )
        channels = in_channels + len(pool_scales) * out_channels
        self.bottleneck = conv_norm_relu(channels, out_channels, 3, norm, MultiScaleConv2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck([x, *(branch(x) for branch in self.branches)])


@BACKBONE_REGISTRY.register()
class UPerFPN(Backbone):
    """The maps of ``bottom_up`` and, made from them, p2 ... p5 of equal width.

    p5 is the pyramid pooling of the coarsest map; each finer level adds the coarser one, resized, to its own lateral
    map, and all but p5 end in a 3x3 convolution.
    """

    @configurable
    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        norm: str = "BN",
    ):
        """
        Args:
            bottom_up: the backbone below.
            in_features: its maps to use, fine to coarse.
            out_channels: channels of each level.
            pool_scales: sides of the pooled maps, in bins.
            norm: normalisation layer by Detectron2's name; "" for none.

        Raises:
            ValueError: ``bottom_up`` does not give one of ``in_features``.
        """
        super().__init__()
        self.bottom_up = bottom_up
        shapes = select_features(bottom_up.output_shape(), in_features, "MODEL.UPER.IN_FEATURES")
        *fine, coarsest = (shape.channels for shape in shapes.values())
        self.in_features = tuple(shapes)
        self.pooling = PyramidPooling(coarsest, out_channels, pool_scales, norm)
        self.lateral = nn.ModuleList(conv_norm_relu(channels, out_channels, 1, norm) for channels in fine)
        self.output = nn.ModuleList(conv_norm_relu(out_channels, out_channels, 3, norm) for _ in fine)
        self._levels = {
            f"p{i}": ShapeSpec(channels=out_channels, stride=shape.stride)
            for i, shape in enumerate(shapes.values(), start=2)
        }

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "bottom_up": BACKBONE_REGISTRY.get(cfg.MODEL.UPER.BOTTOM_UP)(cfg, input_shape),
            "in_features": cfg.MODEL.UPER.IN_FEATURES,
            "out_channels": cfg.MODEL.UPER.OUT_CHANNELS,
            "pool_scales": cfg.MODEL.UPER.POOL_SCALES,
            "norm": cfg.MODEL.UPER.NORM,
        }

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**self.bottom_up.output_shape(), **self._levels}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to {name: (N, C, H / stride, W / stride)}, res2 ... and p2 ..."""
        features = self.bottom_up(image)
        level = self.pooling(features[self.in_features[-1]])
        levels = [level]
        for name, lateral, output in list(zip(self.in_features, self.lateral, self.output))[::-1]:
            x = lateral(features[name])
            level = x + resize(level, x.shape[-2:])
            levels.insert(0, output(level))
        return {**features, **dict(zip(self._levels, levels))}

"""Any timm model as a Detectron2 backbone."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from ..layers import allow_single_values, fit_to_grid
from ..weights import load_pretrained

FEATURES = ("res2", "res3", "res4", "res5")
# Sides of images are multiples of this, the stride of the coarsest map of most networks.
STRIDE = 32
# For models that take one image size only unless told otherwise, such as Swin Transformers.
ANY_SIZE = {"strict_img_size": False, "always_partition": True}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSizes:
    """Sides of the images that a network takes, in pixels.

    Attributes:
        multiple: a side must be a multiple of this.
        smallest, largest: bounds; no upper one if ``largest`` is None.
    """

    multiple: int
    smallest: int
    largest: int | None = None

    def __str__(self) -> str:
        if self.largest == self.smallest:
            return f"images of {self.smallest} x {self.smallest} pixels only"
        return f"images whose sides are multiples of {self.multiple} pixels, {self.smallest} or more"

    def pad(self, size: Sequence[int]) -> tuple[int, ...]:
        """The sides that an image of ``size`` is padded to."""
        return tuple(-(-side // self.multiple) * self.multiple for side in size)

    def takes(self, size: Sequence[int]) -> bool:
        """Whether an image of ``size`` can be padded to one that the network takes."""
        return all(self.smallest <= side <= (self.largest or side) for side in self.pad(size))


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """The last four feature maps of a timm model, named res2 ... res5 from fine to coarse.

    Attributes:
        sizes: the images that the model takes; others are padded.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        output_stride: int = 32,
        drop_path: float = 0.0,
        norm: str = "BN",
        pretrained: bool = False,
        images: Mapping[str, Sequence[int] | None] | None = None,
        **options,
    ):
        """
        Args:
            name: a model that timm builds with ``features_only=True``; "name.tag" chooses among its weights.
            output_stride: stride of res5; timm dilates the last stages of models that allow it.
            drop_path: probability of skipping a residual branch in training, at the deepest block.
            norm: what batch norm becomes: "BN", "SyncBN" or "FrozenBN".
            pretrained: download timm's weights.
            images: (height, width) of what the network will be run on, by the config section that sets it; None for
                images of any size.
            options: more arguments for timm.

        Raises:
            ValueError: timm has no such model, the model does not know an option, gives fewer than four feature maps,
                or does not take ``images``.
            RuntimeError: the weights cannot be downloaded.
        """
        super().__init__()
        if not timm.is_model(name):
            similar = difflib.get_close_matches(name, timm.list_models(), n=5)
            raise ValueError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no model {name!r}; similar: {similar}")
        if output_stride != 32:
            options["output_stride"] = output_stride
        if drop_path:
            options["drop_path_rate"] = drop_path
        try:
            self.sizes, extra = find_image_sizes(name, tuple(options.items()))
            body = timm.create_model(name, features_only=True, **options, **extra)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"MODEL.TIMM: {name!r} does not take {options} ({error})") from error
        self.name = name
        for section, size in (images or {}).items():
            self._check_size(section, size)
        self.body = allow_single_values(convert_batch_norm(body, norm))
        channels, strides = body.feature_info.channels(), body.feature_info.reduction()
        if len(channels) < len(FEATURES):
            raise ValueError(f"MODEL.TIMM.NAME: {name!r} gives {len(channels)} feature maps, expected four")
        self._shapes = {
            feature: ShapeSpec(channels=channels, stride=stride)
            for feature, channels, stride in zip(FEATURES, channels[-4:], strides[-4:])
        }
        self._channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        if pretrained:
            load_pretrained(self, name)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "output_stride": cfg.MODEL.TIMM.OUTPUT_STRIDE,
            "drop_path": cfg.MODEL.TIMM.DROP_PATH,
            "norm": cfg.MODEL.BACKBONE.NORM,
            "pretrained": wants_pretrained(cfg),
            "images": {
                "INPUT.CROP": cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else None,
                "TEST.SLIDING_WINDOW": cfg.TEST.SLIDING_WINDOW.SIZE if cfg.TEST.SLIDING_WINDOW.ENABLED else None,
            },
        }

    @property
    def size_divisibility(self) -> int:
        return self.sizes.multiple

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W), padded as ``size_divisibility`` says, to {name: (N, C, H / stride, W / stride)}.

        Raises:
            ValueError: the model does not take images of this size.
        """
        size = image.shape[-2:]
        if not self.sizes.takes(size) or self.sizes.multiple > STRIDE and self.sizes.pad(size) != tuple(size):
            raise ValueError(
                f"an image has {size[0]} x {size[1]} pixels after padding, but MODEL.TIMM.NAME {self.name!r} takes "
                f"{self.sizes}"
            )
        maps = self.body(image)[-len(FEATURES) :]
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return {
            name: fit_to_grid(x, [-(-side // shape.stride) for side in size])
            for (name, shape), x in zip(self._shapes.items(), maps)
        }

    def _check_size(self, section: str, size: Sequence[int] | None) -> None:
        model = f"MODEL.TIMM.NAME {self.name!r} takes {self.sizes}"
        if size is None:
            if self.sizes.largest:
                raise ValueError(f"{model}: set {section}.ENABLED True and {section}.SIZE {[self.sizes.largest] * 2}")
        elif not self.sizes.takes(size):
            raise ValueError(f"{section}.SIZE is {list(size)}, but {model}")
        elif self.sizes.multiple > STRIDE and self.sizes.pad(size) != tuple(size):
            padded = list(self.sizes.pad(size))
            logger.warning("%s: %s.SIZE %s is padded to %s, which costs time", model, section, list(size), padded)


@cache
def find_image_sizes(name: str, options: tuple[tuple[str, object], ...]) -> tuple[ImageSizes, dict[str, object]]:
    """Find out which images a timm model takes, by trying some, without memory for them or arithmetic.

    Args:
        name: of the model.
        options: arguments for timm, names and values.

    Returns:
        The sizes, and further arguments for timm that the model needs to take them.
    """
    # Initial weights are those of a seed, however often models are tried first.
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        sizes, step = _try_sizes(name, **dict(options))
        if sizes.multiple > step:
            try:
                free, _ = _try_sizes(name, **dict(options), **ANY_SIZE)
            except TypeError:  # no such option
                return sizes, {}
            if free.multiple == step:
                return free, ANY_SIZE
    return sizes, {}


def _try_sizes(name: str, **options) -> tuple[ImageSizes, int]:
    """The images that a model takes, on torch's meta device, and the stride of its coarsest map, at least STRIDE."""
    body = timm.create_model(name, features_only=True, **options).eval()
    step = max(STRIDE, *body.feature_info.reduction())
    native = timm.get_pretrained_cfg(name, allow_unregistered=True).input_size[-1]

    def runs(height: int, width: int) -> bool:
        try:
            body(torch.empty(1, 3, height, width))
        except Exception:  # networks refuse a size in many ways
            return False
        return True

    for multiple in (step, *(side for side in range(2 * step, native + 1, step) if native % side == 0)):
        # Neither a multiple of a larger number nor square.
        if runs(9 * multiple, 11 * multiple):
            smallest = next(side for side in range(multiple, 12 * multiple, multiple) if runs(side, side))
            return ImageSizes(multiple, smallest), step
    if runs(native, native):
        return ImageSizes(native, native, native), step
    return ImageSizes(step, step), step  # cannot be tried: it may well run


def convert_batch_norm(model: nn.Module, norm: str) -> nn.Module:
    """Turn the batch norm layers of a timm model into those that a MODEL.*.NORM key names."""
    # Some of timm's batch norms include the activation: only timm's own converters keep it.
    if norm == "BN":
        return model
    if norm == "SyncBN":
        return convert_sync_batchnorm(model)
    if norm == "FrozenBN":
        return freeze_batch_norm_2d(model)
    raise ValueError(f'MODEL.BACKBONE.NORM is {norm!r}, expected "BN", "SyncBN" or "FrozenBN"')


def wants_pretrained(cfg: CfgNode) -> bool:
    """Whether a backbone downloads its weights: not if it gets others from MODEL.WEIGHTS."""
    return cfg.MODEL.BACKBONE.PRETRAINED and not cfg.MODEL.WEIGHTS

"""Any timm model as a Detectron2 backbone."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
            images: (height, width) of the images, by the config section that sets it; None for images of any size.
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
            body, self.sizes = build_body(name, **options)
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ValueError(f"MODEL.TIMM: timm does not build {name!r} with {options} ({error})") from error
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


def build_body(name: str, **options) -> tuple[nn.Module, ImageSizes]:
    """Build a timm model that gives feature maps, for images of any size if possible, and find out the sizes it takes.

    Raises:
        TypeError, AssertionError: the model does not know an option.
        RuntimeError: it gives no feature maps.
    """
    body = timm.create_model(name, features_only=True, **options)
    sizes = find_image_sizes(body, name, str(options))
    if sizes.multiple > coarsest_stride(body):
        try:
            free = timm.create_model(name, features_only=True, **options, **ANY_SIZE)
        except TypeError:  # no such option
            return body, sizes
        free_sizes = find_image_sizes(free, name, str(options | ANY_SIZE))
        if free_sizes.multiple == coarsest_stride(free):
            return free, free_sizes
    return body, sizes


def coarsest_stride(body: nn.Module) -> int:
    """The largest stride of its feature maps, 32 at least."""
    return max(STRIDE, *body.feature_info.reduction())


def find_image_sizes(body: nn.Module, name: str, options: str) -> ImageSizes:
    """Find out which images a timm model takes, by trying some, without memory or arithmetic (on torch's meta device).

    Args:
        body: the model; nothing of it changes.
        name, options: what it was made from. Models with equal name and options are tried once.
    """
    if (name, options) not in _found_sizes:
        training = body.training
        _found_sizes[name, options] = _try_sizes(body.eval(), name)
        body.train(training)
    return _found_sizes[name, options]


_found_sizes: dict[tuple[str, str], ImageSizes] = {}


def _try_sizes(body: nn.Module, name: str) -> ImageSizes:
    tensors = {key: x.to("meta") for key, x in (*body.named_parameters(), *body.named_buffers())}
    native = timm.get_pretrained_cfg(name, allow_unregistered=True).input_size[-1]
    step = coarsest_stride(body)

    def runs(height: int, width: int) -> bool:
        try:
            with torch.device("meta"), torch.no_grad():
                torch.func.functional_call(body, tensors, torch.empty(1, 3, height, width))
        except Exception:  # networks refuse a size in many ways
            return False
        return True

    for multiple in (step, *(side for side in range(2 * step, native + 1, step) if native % side == 0)):
        # Neither a multiple of a larger number nor square.
        if runs(9 * multiple, 11 * multiple):
            smallest = next(side for side in range(multiple, 12 * multiple, multiple) if runs(side, side))
            return ImageSizes(multiple, smallest)
    if runs(native, native):
        return ImageSizes(native, native, native)
    return ImageSizes(step, step)  # it cannot be tried on the meta device, but may still run


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
    """Whether a backbone downloads its weights: it does not if MODEL.WEIGHTS names others."""
    return cfg.MODEL.BACKBONE.PRETRAINED and not cfg.MODEL.WEIGHTS

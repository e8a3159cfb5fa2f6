"""Any timm model as a Detectron2 backbone."""

import difflib

import timm
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from ..weights import load_pretrained

FEATURES = ("res2", "res3", "res4", "res5")
# Families of models that accept one image size only, unless told otherwise.
ANY_SIZE = {
    "swin_": {"strict_img_size": False, "always_partition": True},
    "swinv2_tiny": {"strict_img_size": False, "always_partition": True},
    "swinv2_small": {"strict_img_size": False, "always_partition": True},
    "swinv2_base": {"strict_img_size": False, "always_partition": True},
    "swinv2_large": {"strict_img_size": False, "always_partition": True},
}


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """The last four feature maps of a timm model, named res2 ... res5 from fine to coarse."""

    @configurable
    def __init__(
        self,
        *,
        name: str,
        output_stride: int = 32,
        drop_path: float = 0.0,
        norm: str = "BN",
        pretrained: bool = False,
        **options,
    ):
        """
        Args:
            name: a model that timm builds with ``features_only=True``; "name.tag" chooses among its weights.
            output_stride: stride of res5; timm dilates the last stages of models that allow it.
            drop_path: probability of skipping a residual branch in training, at the deepest block.
            norm: what batch norm becomes: "BN", "SyncBN" or "FrozenBN".
            pretrained: download timm's weights.
            options: more arguments for timm.

        Raises:
            ValueError: timm has no such model, the model does not know an option, or it gives fewer than four feature
                maps.
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
        for family, extra in ANY_SIZE.items():
            if name.startswith(family):
                options.update(extra)
        try:
            body = timm.create_model(name, features_only=True, **options)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"MODEL.TIMM: {name!r} does not take {options} ({error})") from error
        self.body = convert_batch_norm(body, norm)
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
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W), both sides multiples of 32, to {name: (N, C, H / stride, W / stride)}."""
        maps = self.body(image)[-len(FEATURES) :]
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return dict(zip(FEATURES, maps))


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

"""Any encoder of segmentation_models_pytorch (SMP), such as SegFormer's (MiT), as a Detectron2 backbone."""

import difflib

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from ...extras import import_extra
from ..layers import allow_single_values
from ..weights import load_download
from .timm import FEATURES, STRIDE, convert_batch_norm, wants_pretrained


@BACKBONE_REGISTRY.register()
class SMPBackbone(Backbone):
    """The last four feature maps of an encoder of SMP, named res2 ... res5: strides 4, 8, 16 and 32."""

    @configurable
    def __init__(self, *, name: str = "mit_b0", drop_path: float = 0.0, norm: str = "BN", pretrained: bool = False):
        """
        Args:
            name: one of ``segmentation_models_pytorch.encoders.get_encoder_names()``, which all have these strides.
            drop_path: probability of skipping a residual branch in training, at the deepest block; MiT alone has it.
            norm: what batch norm becomes: "BN", "SyncBN" or "FrozenBN". MiT has none.
            pretrained: download SMP's ImageNet weights.

        Raises:
            MissingExtraError: SMP is not installed.
            ValueError: SMP has no such encoder, or it has no drop path.
            RuntimeError: the weights cannot be downloaded.
        """
        super().__init__()
        smp = import_extra("segmentation_models_pytorch", "smp")
        names = smp.encoders.get_encoder_names()
        # SMP also takes timm's models, as "tu-...", some of which have other strides. They are for TimmBackbone.
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=5)
            raise ValueError(
                f"MODEL.SMP.NAME: segmentation_models_pytorch {smp.__version__} has no encoder {name!r} of its own; "
                f"similar: {similar}"
            )
        body = smp.encoders.get_encoder(name)
        if hasattr(body, "reset_drop_path"):
            body.reset_drop_path(drop_path)
        elif drop_path:
            raise ValueError(f"MODEL.SMP.DROP_PATH is {drop_path}, but {name!r} skips no branches: expected 0")
        self._shapes = {
            feature: ShapeSpec(channels=channels, stride=stride)
            for feature, channels, stride in zip(FEATURES, body.out_channels[-4:], (4, 8, 16, 32))
        }
        self.body = allow_single_values(convert_batch_norm(body, norm))
        if pretrained:
            load_download(
                self,
                lambda: smp.encoders.get_encoder(name, weights="imagenet"),
                f"segmentation_models_pytorch's {name!r}",
                "https://huggingface.co/smp-hub",
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "name": cfg.MODEL.SMP.NAME,
            "drop_path": cfg.MODEL.SMP.DROP_PATH,
            "norm": cfg.MODEL.BACKBONE.NORM,
            "pretrained": wants_pretrained(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        return STRIDE

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W), multiples of 32, to {name: (N, C, H / stride, W / stride)}."""
        return dict(zip(FEATURES, self.body(image)[-len(FEATURES) :]))

"""Plain Vision Transformers, such as DINOv2 and DINOv3, under a simple feature pyramid (Li et al., ECCV 2022)."""

import timm
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, SimpleFeaturePyramid
from torch import Tensor

from ..weights import load_pretrained
from .timm import FEATURES, wants_pretrained

# Side of the patches in pixels, and so the stride of the only map that a plain transformer has. Pretrained patches of
# another side are resized.
PATCH = 16
LAST = "last"


class PlainViT(Backbone):
    """A timm Vision Transformer as a backbone with one feature map of stride 16, for images of any size."""

    def __init__(self, name: str, drop_path: float = 0.0, pretrained: bool = False):
        """See ViTPyramid."""
        super().__init__()
        options = {"patch_size": PATCH, "dynamic_img_size": True, "num_classes": 0}
        try:
            self.body = timm.create_model(name, drop_path_rate=drop_path, **options)
            stride = self.body.patch_embed.feat_ratio()
        except (AssertionError, AttributeError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"MODEL.TIMM.NAME is {name!r}: ViTPyramid expects one of timm's plain Vision Transformers, such as "
                f'"vit_small_patch14_dinov2.lvd142m" ({error})'
            ) from error
        if stride != PATCH:
            raise ValueError(f"MODEL.TIMM.NAME is {name!r}: its stride is {stride}, ViTPyramid expects {PATCH}")
        if pretrained:
            load_pretrained(self, name, **options)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {LAST: ShapeSpec(channels=self.body.embed_dim, stride=PATCH)}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W), multiples of 16, to {"last": (N, C, H / 16, W / 16)}, after the last norm."""
        (x,) = self.body.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)
        return {LAST: x}


@BACKBONE_REGISTRY.register()
class ViTPyramid(SimpleFeaturePyramid):
    """Detectron2's SimpleFeaturePyramid over a timm Vision Transformer: res2 ... res5, all made from its last map."""

    @configurable
    def __init__(
        self,
        *,
        name: str,
        out_channels: int = 256,
        norm: str = "LN",
        drop_path: float = 0.0,
        pretrained: bool = False,
    ):
        """
        Args:
            name: of a plain Vision Transformer in timm; "name.tag" chooses among its weights.
            out_channels: channels of each map.
            norm: of the pyramid, by Detectron2's name; "" for none.
            drop_path: probability of skipping a residual branch in training, at the deepest block.
            pretrained: download timm's weights.

        Raises:
            ValueError: timm has no such transformer.
            RuntimeError: the weights cannot be downloaded.
        """
        net = PlainViT(name, drop_path, pretrained)
        super().__init__(net, LAST, out_channels, scale_factors=(4.0, 2.0, 1.0, 0.5), norm=norm)
        self._shapes = dict(zip(FEATURES, super().output_shape().values()))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "out_channels": cfg.MODEL.VIT.OUT_CHANNELS,
            "norm": cfg.MODEL.VIT.NORM,
            "drop_path": cfg.MODEL.TIMM.DROP_PATH,
            "pretrained": wants_pretrained(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W), multiples of 32, to {name: (N, C, H / stride, W / stride)}."""
        return dict(zip(FEATURES, super().forward(image).values()))

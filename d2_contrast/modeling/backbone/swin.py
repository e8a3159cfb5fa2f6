"""Swin Transformer (Liu et al., ICCV 2021) as segmentation uses it: a norm on each output, images of any size."""

from collections.abc import Sequence
from functools import partial

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SwinTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..._detectron2 import without_deprecations
from ..weights import load_pretrained
from .timm import FEATURES, wants_pretrained


@BACKBONE_REGISTRY.register()
class Swin(SwinTransformer):
    """Detectron2's SwinTransformer with its outputs named res2 ... res5."""

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        pretrained: str = "",
    ):
        """
        Args:
            embed_dim: channels of the first stage; each further one has twice as many.
            depths: blocks of the four stages.
            num_heads: attention heads of the four stages.
            window_size: side of the attention windows, in tokens.
            drop_path: probability of skipping a residual branch in training, at the deepest block.
            checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
            pretrained: name of a timm model of equal structure, whose weights are downloaded; "" for random ones.

        Raises:
            RuntimeError: the weights cannot be downloaded.
        """
        with without_deprecations():
            super().__init__(
                embed_dim=embed_dim,
                depths=depths,
                num_heads=num_heads,
                window_size=window_size,
                drop_path_rate=drop_path,
            )
        if checkpointing:
            for stage in self.layers:
                for block in stage.blocks:
                    # Detectron2's own option relies on the re-entrant checkpoint, which torch drops and DDP refuses.
                    block.forward = partial(_recompute, block)
        if pretrained:
            load_pretrained(self, pretrained)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        swin = cfg.MODEL.SWIN
        return {
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "drop_path": swin.DROP_PATH,
            "checkpointing": swin.CHECKPOINTING,
            "pretrained": swin.PRETRAINED_NAME if wants_pretrained(cfg) else "",
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=4 * 2**i)
            for i, (name, channels) in enumerate(zip(FEATURES, self.num_features))
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to {name: (N, C, ceil(H / stride), ceil(W / stride))}."""
        return dict(zip(FEATURES, super().forward(image).values()))


def _recompute(block: nn.Module, *args: Tensor) -> Tensor:
    return checkpoint(type(block).forward, block, *args, use_reentrant=False)

"""What the heads of this project share: Detectron2's calling convention around ``layers`` and a pixel loss."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..features import select_features
from ..layers import resize
from ..pixel_losses import build_pixel_loss


class SemSegHead(nn.Module):
    """A head whose logits have the stride of its first feature map."""

    def __init__(
        self, input_shape: Mapping[str, ShapeSpec], *, pixel_loss: nn.Module, loss_weight: float, ignore_value: int
    ):
        """
        Args:
            input_shape: the feature maps that the head reads, by name, fine to coarse.
            pixel_loss: called with logits (N, K, H, W) and targets (N, H, W).
            loss_weight: factor of that loss.
            ignore_value: ignore label of the targets; the meta-architecture pads targets with it.
        """
        super().__init__()
        self.in_features = tuple(input_shape)
        self.common_stride = next(iter(input_shape.values())).stride
        self.pixel_loss = pixel_loss
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": select_features(input_shape, head.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
            "num_classes": head.NUM_CLASSES,
            "channels": head.CONVS_DIM,
            "dropout": head.DROPOUT,
            "norm": head.NORM,
            "pixel_loss": build_pixel_loss(cfg),
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses, and logits at inference, are float32, in mixed precision too.

        Args:
            features: {name: (N, C, h, w)}.
            targets: (N, H, W) train ids, in training.

        Returns:
            In training (logits (N, K, h, w), losses), otherwise (logits (N, K, H, W), {}).
        """
        logits = self.layers(features)
        if self.training:
            with torch.autocast(targets.device.type, enabled=False):
                losses = self.losses(logits, targets)
            return (logits[0] if isinstance(logits, tuple) else logits), losses
        return F.interpolate(logits.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False), {}

    @abstractmethod
    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map features to logits (N, K, h, w) at the stride of the first of them."""

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Weighted losses of logits (N, K, h, w) against targets (N, H, W), by name."""
        logits = resize(logits.float(), targets.shape[-2:])
        return {"loss_sem_seg": self.loss_weight * self.pixel_loss(logits, targets)}

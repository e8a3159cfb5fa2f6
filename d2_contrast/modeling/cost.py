"""Parameters and operations of a network, part by part.

Operations are multiply-adds of convolutions, matrix products, norms and resizing, counted by fvcore on one image. The
losses are not among them: those of the contrastive branch depend on the anchors that a batch has.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

Counts = dict[str, tuple[int, int]]  # parameters and operations of each part by its name; "" is the whole


class Inference(nn.Module):
    """What a segmentor runs for a prediction, between normalising the image and resizing the logits to it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.sem_seg_head = model.sem_seg_head

    def forward(self, image: Tensor) -> Tensor:
        """Map (1, 3, H, W) to logits (1, K, H, W)."""
        return self.sem_seg_head(self.backbone(image))[0]


class Training(Inference):
    """The same with auxiliary head and projectors: what a segmentor runs in training, without the losses.

    Projectors are counted at all positions. A training applies their last layer to sampled positions alone, and with
    MODEL.CONTRAST.PROJECT "anchors" all of their layers.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.aux_head = model.aux_head
        self.projectors = model.contrast.projectors if model.contrast is not None else nn.ModuleDict()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (1, 3, H, W) to logits, auxiliary logits and embeddings."""
        features = self.backbone(image)
        outputs = [self.sem_seg_head(features)[0]]
        if self.aux_head is not None:
            outputs.append(self.aux_head(features)[0])
        return outputs + [projector(features[name]) for name, projector in self.projectors.items()]


def count(module: nn.Module, image: Tensor) -> Counts:
    """Count the parameters and operations of a module and of each of its submodules."""
    analysis = FlopCountAnalysis(module.eval(), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    operations = analysis.by_module()
    return {
        name: (sum(p.numel() for p in part.parameters()), operations[name]) for name, part in module.named_modules()
    }


def build(cfg: CfgNode, contrast: bool) -> nn.Module:
    """Build the network of a config with random weights, on the CPU, with or without its contrastive branch."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAINED = False
    cfg.MODEL.CONTRAST.ENABLED = contrast and cfg.MODEL.CONTRAST.ENABLED
    return build_model(cfg)


def input_image(cfg: CfgNode, model: nn.Module, size: Sequence[int] | None = None) -> Tensor:
    """An image (1, 3, H, W) of this size, or of the crop of a config, padded to what the network takes."""
    side = max(int(model.backbone.size_divisibility), 1)
    height, width = (-(-length // side) * side for length in size or cfg.INPUT.CROP.SIZE)
    return torch.zeros(1, 3, height, width)

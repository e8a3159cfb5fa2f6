"""Parameters and operations of a network, part by part.

Operations are multiply-adds of convolutions, matrix products, norms and resizing, counted by fvcore on one image. The
losses are not among them: those of the contrastive branch depend on the anchors that a batch has.
"""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from .features import join_features
from .heads import SemSegHead
from .layers import resize

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
    MODEL.CONTRAST.PROJECT "anchors" all of their layers. Detectron2's own segmentors have neither of the two.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.sem_seg_head = TrainingLogits(model.sem_seg_head)
        aux_head, contrast = getattr(model, "aux_head", None), getattr(model, "contrast", None)
        self.aux_head = None if aux_head is None else TrainingLogits(aux_head)
        self.projectors = nn.ModuleDict() if contrast is None else contrast.projectors

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (1, 3, H, W) to logits, auxiliary logits and embeddings."""
        features = self.backbone(image)
        outputs = self.sem_seg_head(features, image.shape[-2:])
        if self.aux_head is not None:
            outputs += self.aux_head(features, image.shape[-2:])
        features = join_features(features, self.projectors)
        return outputs + [projector(features[name]) for name, projector in self.projectors.items()]


class TrainingLogits(nn.Module):
    """All logits on which a head has losses, which may be more than its prediction."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: Mapping[str, Tensor], size: Sequence[int]) -> list[Tensor]:
        """Map features to logits (1, K, *size), as the losses resize them."""
        if not isinstance(self.head, SemSegHead):
            return [self.head(features)[0]]
        self.head.training = True  # but not its layers: norms are counted as at inference
        logits = self.head.layers(features)
        return [resize(x, size) for x in (logits if isinstance(logits, tuple) else (logits,))]


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

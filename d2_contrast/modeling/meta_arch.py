"""The meta-architecture: a semantic segmentor that is also trained by contrasting its feature maps."""

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    SemanticSegmentor,
    build_backbone,
    build_sem_seg_head,
)
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from d2_contrast.contrast import MultiScaleContrast, Projector

from .features import select_features

# What a network is trained with but does not need for a prediction, by the start of its tensors' names.
TRAINING_ONLY = ("aux_head.", "projectors.")


@META_ARCH_REGISTRY.register()
class ContrastiveSegmentor(SemanticSegmentor):
    """Detectron2's SemanticSegmentor with an auxiliary head and a contrastive branch: both optional, for training only.

    Inference is inherited: it runs backbone and head alone, whatever the network was trained with.
    """

    @configurable
    def __init__(
        self,
        *,
        aux_head: nn.Module | None = None,
        projectors: Mapping[str, Projector] | None = None,
        criterion: MultiScaleContrast | None = None,
        log_period: int = 20,
        **kwargs,
    ):
        """
        Args:
            aux_head: a second segmentation head.
            projectors: one for each feature map to contrast, by name; None for no contrastive branch.
            criterion: the contrastive loss of their embeddings.
            log_period: iterations between two logs of the anchors' statistics; 0 for none.
            kwargs: see SemanticSegmentor.
        """
        super().__init__(**kwargs)
        self.aux_head = aux_head
        self.projectors = nn.ModuleDict(projectors or {})
        self.criterion = criterion
        self.log_period = log_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        # Detectron2's heads pass over names that do not exist.
        select_features(shapes, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        args = {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shapes),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
        if cfg.MODEL.AUX_HEAD.NAME:
            args["aux_head"] = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.AUX_HEAD.NAME)(cfg, shapes)
        if cfg.MODEL.CONTRAST.ENABLED:
            args["projectors"] = build_projectors(cfg, shapes)
            args["criterion"] = build_criterion(cfg)
            args["log_period"] = cfg.MODEL.CONTRAST.LOG_PERIOD
        return args

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: one dict an image, with ``image`` (3, H, W) and, in training, ``sem_seg`` (H, W) train ids;
                see SemanticSegmentor.

        Returns:
            In training, weighted losses by name; otherwise what SemanticSegmentor returns, one dict an image with
            ``sem_seg``, logits (K, height, width).
        """
        if not self.training:
            return super().forward(batched_inputs)
        images = self._images(batched_inputs)
        targets = self._pad([x["sem_seg"].to(self.device) for x in batched_inputs], self.sem_seg_head.ignore_value)
        features = self.backbone(images.tensor)
        _, losses = self.sem_seg_head(features, targets.tensor)
        if self.aux_head is not None:
            _, aux_losses = self.aux_head(features, targets.tensor)
            losses.update({name.replace("loss_", "loss_aux_", 1): loss for name, loss in aux_losses.items()})
        if self.criterion is not None:
            hidden = {name: projector.hidden(features[name]) for name, projector in self.projectors.items()}
            losses.update(self._contrast(hidden, targets.tensor))
        return losses

    @torch.no_grad()
    def extract_features(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Run the backbone alone: images as in ``forward`` to {name: (N, C, h, w)}."""
        return self.backbone(self._images(batched_inputs).tensor)

    @torch.no_grad()
    def embed(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project feature maps to unit-length embeddings, {name: (N, D, h, w)}; {} without contrastive branch."""
        return {name: F.normalize(projector(features[name])) for name, projector in self.projectors.items()}

    def _images(self, batched_inputs: list[dict]) -> ImageList:
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return self._pad(images, 0.0)

    def _pad(self, tensors: list[Tensor], value: float) -> ImageList:
        divisibility, constraints = self.backbone.size_divisibility, self.backbone.padding_constraints
        return ImageList.from_tensors(tensors, divisibility, value, constraints)

    @torch.compiler.disable  # reads the iteration and writes logs
    def _contrast(self, hidden: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
        last_layers = {name: projector.last for name, projector in self.projectors.items()}
        storage = get_event_storage() if has_event_storage() else None
        iteration = storage.iter if storage else None
        if not storage or not self.log_period or iteration % self.log_period:
            return self.criterion(hidden, targets, iteration, last_layers=last_layers)
        losses, stats = self.criterion(hidden, targets, iteration, with_stats=True, last_layers=last_layers)
        # A similarity is NaN where a scale has no pair of that kind: there is nothing to log then.
        storage.put_scalars(
            smoothing_hint=False, **{k: v for k, v in ((k, float(v)) for k, v in stats.items()) if v == v}
        )
        return losses


def build_projectors(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> dict[str, Projector]:
    """Build one projector for each of ``cfg.MODEL.CONTRAST.IN_FEATURES`` of a backbone with these output shapes."""
    contrast = cfg.MODEL.CONTRAST
    return {
        name: Projector(
            shape.channels, contrast.EMBEDDING_DIM, contrast.PROJECTOR_LAYERS, lambda c: get_norm(contrast.NORM, c)
        )
        for name, shape in select_features(shapes, contrast.IN_FEATURES, "MODEL.CONTRAST.IN_FEATURES").items()
    }


def build_criterion(cfg: CfgNode) -> MultiScaleContrast:
    """Build the contrastive loss that ``cfg.MODEL.CONTRAST`` describes.

    Raises:
        ValueError: its keys contradict each other.
    """
    contrast = cfg.MODEL.CONTRAST
    try:
        return MultiScaleContrast(
            in_features=contrast.IN_FEATURES,
            scale_weights=contrast.SCALE_WEIGHTS,
            cross_scale_pairs=contrast.CROSS_SCALE_PAIRS,
            cross_scale_weights=contrast.CROSS_SCALE_WEIGHTS,
            ms_weight=contrast.LOSS_WEIGHT_MULTI_SCALE,
            cs_weight=contrast.LOSS_WEIGHT_CROSS_SCALE,
            temperature=contrast.TEMPERATURE,
            sampler=contrast.SAMPLER,
            max_anchors=contrast.MAX_ANCHORS,
            max_per_class=contrast.MAX_PER_CLASS or None,
            min_per_class=contrast.MIN_PER_CLASS,
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            warmup_iters=contrast.WARMUP_ITERS,
            gather=contrast.GATHER,
        )
    except ValueError as error:
        raise ValueError(f"MODEL.CONTRAST: {error}") from error

"""The meta-architecture: a semantic segmentor that is also trained by contrasting its feature maps."""

import logging
import math
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    SemanticSegmentor,
    build_backbone,
    build_sem_seg_head,
)
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from d2_contrast.contrast import (
    AnchorSampler,
    AverageMemory,
    ContrastiveBranch,
    ContrastMemory,
    GradientBalance,
    MinedMemory,
    MultiScaleContrast,
    Projector,
    describe_anchors,
)
from d2_contrast.contrast.branch import Tapped
from d2_contrast.contrast.device import to_device

from ..config_ranges import check_contrast
from .features import join_features, join_shapes, narrow, normalise_images, pad_batch, part_names, select_features
from .heads import SemSegHead, build_aux_head
from .layers import allow_single_values, resize

logger = logging.getLogger(__name__)

# Parts that only training needs, by the first part of the names of their tensors.
TRAINING_ONLY = ("aux_head.", "contrast.")


@META_ARCH_REGISTRY.register()
class ContrastiveSegmentor(SemanticSegmentor):
    """Detectron2's SemanticSegmentor with an auxiliary head and a contrastive branch: both optional, for training only.

    Inference is SemanticSegmentor's: it runs backbone and head alone, whatever the network was trained with.
    """

    @configurable
    def __init__(
        self,
        *,
        aux_head: nn.Module | None = None,
        contrast: ContrastiveBranch | None = None,
        balance: GradientBalance | None = None,
        log_period: int = 20,
        balance_log_period: int = 0,
        channels_last: bool = False,
        **kwargs,
    ):
        """
        Args:
            aux_head: a second segmentation head.
            contrast: the contrastive losses of feature maps.
            balance: how the gradients of the contrastive losses join those of the heads; None for their sum.
            log_period: iterations between two logs of the anchors' statistics; 0 for none.
            balance_log_period: iterations between two logs of the norms of both gradients; 0 for none.
            channels_last: keep weights, images and maps in torch's memory format of that name. Values stay the same.
            kwargs: see SemanticSegmentor.

        Raises:
            ValueError: the losses need the logits, and the head does not return them in training.
        """
        super().__init__(**kwargs)
        if contrast is not None and contrast.needs_logits and not isinstance(self.sem_seg_head, SemSegHead):
            raise ValueError(
                "MODEL.CONTRAST.MEMORY.METHOD looks at predictions, which MODEL.SEM_SEG_HEAD.NAME "
                f"{type(self.sem_seg_head).__name__} does not give in training: take a head of this project, "
                "such as UPerHead"
            )
        self.aux_head = aux_head
        self.contrast = contrast
        self.balance = balance
        self.log_period = log_period
        self.balance_log_period = balance_log_period
        self.channels_last = channels_last
        self._missed_anchors = False
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        # Detectron2's heads ignore names that do not exist.
        select_features(shapes, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        args = {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shapes),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }
        if cfg.MODEL.AUX_HEAD.NAME:
            args["aux_head"] = build_aux_head(cfg, shapes)
        if cfg.MODEL.CONTRAST.ENABLED:
            args["contrast"] = build_contrast(cfg, shapes)
            args["balance"] = build_balance(cfg)
            args["log_period"] = cfg.MODEL.CONTRAST.LOG_PERIOD
            args["balance_log_period"] = cfg.MODEL.CONTRAST.BALANCE.LOG_PERIOD
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
        images = normalise_images(self, batched_inputs)
        features = self.backbone(images.tensor)
        if not self.training:
            logits, _ = self.sem_seg_head(features, None)
            return self._to_outputs(logits, images, batched_inputs)
        # Labels stay on the host: positions are drawn there while the device computes the network.
        labels = pad_batch(self, [x["sem_seg"] for x in batched_inputs], self.sem_seg_head.ignore_value).tensor
        targets = to_device(narrow(labels), self.device).long()
        contrasted, tapped = features, None
        if self.contrast is not None and self.balance is not None:
            features, contrasted = self._split(self.balance, self.contrast.criterion, features)
        elif self.contrast is not None and self.contrast.project == "anchors":
            joined = join_features(features, self.contrast.criterion.scales)
            contrasted, tapped = self.contrast.tap(joined, labels)
            features = contrasted
        logits, losses = self.sem_seg_head(features, targets)
        if self.aux_head is not None:
            _, aux_losses = self.aux_head(features, targets)
            for name, loss in aux_losses.items():
                name = "loss_aux_" + name.removeprefix("loss_")  # which the head itself may have, as OCRHead does
                losses[name] = losses[name] + loss if name in losses else loss
        if self.contrast is not None:
            losses.update(self._contrast(self.contrast, contrasted, labels, logits, tapped))
        return losses

    @torch.no_grad()
    def embed(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project feature maps to unit-length embeddings, {name: (N, D, h, w)}; {} without contrastive branch."""
        if self.contrast is None:
            return {}
        return self.contrast.embed(join_features(features, self.contrast.criterion.scales))

    @torch.compiler.disable
    def log_gradients(self) -> None:
        """Log what MODEL.CONTRAST.BALANCE measured in the last backward pass; to be called after it, in its step."""
        if self.balance is not None:
            measured = self.balance.take_measured()
            storage = get_event_storage()
            storage.put_scalars(smoothing_hint=False, **{f"gradient/{name}": x for name, x in measured.items()})

    def _to_outputs(self, logits: Tensor, images: ImageList, batched_inputs: list[dict]) -> list[dict]:
        # A head multiplies the size of a map by its stride, which is the size of the images only where that divides it.
        if logits.shape[-2:] != images.tensor.shape[-2:]:
            logits = resize(logits, images.tensor.shape[-2:])
        return [
            {"sem_seg": sem_seg_postprocess(x, size, inputs.get("height", size[0]), inputs.get("width", size[1]))}
            for x, size, inputs in zip(logits, images.image_sizes, batched_inputs)
        ]

    @torch.compiler.disable(recursive=False)  # reads the iteration and writes logs
    def _split(
        self, balance: GradientBalance, criterion: MultiScaleContrast, features: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        iteration = None
        if has_event_storage():
            iteration = get_event_storage().iter
            self.log_gradients()  # a step late, where the trainer has not called it
            balance.measure = bool(self.balance_log_period) and iteration % self.balance_log_period == 0
        return balance.split(features, part_names(criterion.scales), criterion.schedule(iteration))

    @torch.compiler.disable(recursive=False)  # reads the iteration and writes logs; what it calls may be compiled
    def _contrast(
        self,
        branch: ContrastiveBranch,
        features: dict[str, Tensor],
        labels: Tensor,
        logits: Tensor | None,
        tapped: dict[str, Tapped] | None,
    ) -> dict[str, Tensor]:
        if tapped is None:
            features = join_features(features, branch.criterion.scales)
        storage = get_event_storage() if has_event_storage() else None
        iteration = storage.iter if storage else None
        if not storage or not self.log_period or iteration % self.log_period:
            return branch(features, labels, iteration, logits, tapped)
        anchor_sets = branch.sample(features, labels, logits, tapped)
        if not self._missed_anchors and not any(len(anchor_set.labels) for anchor_set in anchor_sets.values()):
            self._missed_anchors = True
            logger.warning(
                "Iteration %d: no class has as many positions as MODEL.CONTRAST.MIN_PER_GROUP and MAX_ANCHORS ask for, "
                "so the contrastive losses are 0; contrast/…/num_anchors shows how often that is so",
                iteration,
            )
        # A similarity is NaN where a scale has no pair of that kind: there is nothing to log then.
        stats = {name: value for name, value in describe_anchors(anchor_sets).items() if not math.isnan(value)}
        storage.put_scalars(smoothing_hint=False, **stats)
        return branch.losses(anchor_sets, iteration)


# What each of MODEL.CONTRAST.MEMORY.METHOD keeps.
_MEMORIES = {"": (), "pixels": ("pixels",), "regions": ("regions",), "pixels+regions": ("pixels", "regions")}
_AVERAGES = "averages"


def build_contrast(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> ContrastiveBranch:
    """Build the contrastive branch that ``cfg.MODEL.CONTRAST`` describes, for a backbone with these output shapes.

    Raises:
        ValueError: a key is out of range or contradicts another one; the message names it.
    """
    check_contrast(cfg)
    contrast = cfg.MODEL.CONTRAST
    names, pairs = contrast.IN_FEATURES, [tuple(pair) for pair in contrast.CROSS_SCALE_PAIRS]
    projectors = {
        name: allow_single_values(
            Projector(
                shape.channels,
                contrast.EMBEDDING_DIM,
                contrast.PROJECTOR_LAYERS,
                lambda c: get_norm(contrast.NORM, c) or nn.Identity(),
            )
        )
        for name, shape in join_shapes(shapes, names, "MODEL.CONTRAST.IN_FEATURES").items()
    }
    sampler = AnchorSampler(
        unit=contrast.SAMPLER,
        max_anchors=contrast.MAX_ANCHORS,
        max_per_group=contrast.MAX_PER_GROUP,
        min_per_group=contrast.MIN_PER_GROUP,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        gather=contrast.GATHER,
    )
    criterion = MultiScaleContrast(
        dict(zip(names, contrast.SCALE_WEIGHTS)),
        dict(zip(pairs, contrast.CROSS_SCALE_WEIGHTS)),
        sampler=sampler,
        ms_weight=contrast.LOSS_WEIGHT_MULTI_SCALE,
        cs_weight=contrast.LOSS_WEIGHT_CROSS_SCALE,
        temperature=contrast.TEMPERATURE,
        warmup_iters=contrast.WARMUP_ITERS,
        decay_iters=contrast.DECAY_ITERS,
        memories=_build_memories(cfg),
        tf32=contrast.TF32,
    )
    return ContrastiveBranch(projectors, criterion, contrast.PROJECT)


def build_balance(cfg: CfgNode) -> GradientBalance | None:
    """Build what ``cfg.MODEL.CONTRAST.BALANCE`` describes, None if it asks for nothing.

    Raises:
        ValueError: the head reads no map that is contrasted, or SHARE is out of range.
    """
    balance = cfg.MODEL.CONTRAST.BALANCE
    if not (balance.SHARE or balance.REMOVE_CONFLICT or balance.LOG_PERIOD):
        return None
    read = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    if not set(read) & set(part_names(cfg.MODEL.CONTRAST.IN_FEATURES)):
        raise ValueError(
            "MODEL.CONTRAST.BALANCE compares gradients at maps that the head reads as well, but "
            f"MODEL.CONTRAST.IN_FEATURES has none of {read}: contrast maps of the head, or leave BALANCE as it is"
        )
    return GradientBalance(balance.SHARE, balance.REMOVE_CONFLICT)


def _build_memories(cfg: CfgNode) -> dict[str, ContrastMemory]:
    contrast, num_classes = cfg.MODEL.CONTRAST, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    memory, dim = contrast.MEMORY, contrast.EMBEDDING_DIM
    if memory.METHOD == _AVERAGES:
        return {name: AverageMemory(num_classes, dim, memory.REGIONS) for name in contrast.IN_FEATURES}
    sizes = {kind: memory[kind.upper()] for kind in _MEMORIES[memory.METHOD]}
    return {name: MinedMemory(num_classes, dim, sizes) for name in contrast.IN_FEATURES} if sizes else {}

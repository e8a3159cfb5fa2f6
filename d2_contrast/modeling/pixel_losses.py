"""Losses of one logit vector per pixel, by name in PIXEL_LOSS_REGISTRY.

All take logits (N, K, H, W) of any floating type and targets (N, H, W) of train ids, compute in float32 or better,
leave out targets below 0 or equal to the ignore label, and are zero, with zero gradients, where nothing is left.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

PIXEL_LOSS_REGISTRY = Registry("PIXEL_LOSS")
PIXEL_LOSS_REGISTRY.__doc__ = "Pixel losses; an entry is called with a config and gives a module (logits, targets)."


def build_pixel_loss(cfg: CfgNode, auxiliary: bool = False) -> nn.Module:
    """Build the pixel loss that ``cfg.MODEL.PIXEL_LOSS`` names, for the prediction itself or an auxiliary one."""
    names = cfg.MODEL.PIXEL_LOSS
    return PIXEL_LOSS_REGISTRY.get(names.AUX_NAME if auxiliary and names.AUX_NAME else names.NAME)(cfg)


@PIXEL_LOSS_REGISTRY.register()
class CrossEntropy(nn.Module):
    """Cross entropy, averaged over the pixels that count, each weighted by its class."""

    @configurable
    def __init__(self, *, num_classes: int, ignore_label: int = 255, class_weights: Sequence[float] = ()):
        """
        Args:
            num_classes: K.
            ignore_label: target of the pixels left out.
            class_weights: one per class; empty for equal weights.

        Raises:
            ValueError: if there are not K weights.
        """
        super().__init__()
        if class_weights and len(class_weights) != num_classes:
            raise ValueError(
                f"MODEL.PIXEL_LOSS.CLASS_WEIGHTS has {len(class_weights)} entries, expected one for each of the "
                f"{num_classes} classes or none"
            )
        self.ignore_label = ignore_label
        weights = torch.tensor(class_weights or [1.0] * num_classes, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "class_weights": cfg.MODEL.PIXEL_LOSS.CLASS_WEIGHTS,
        }

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        valid = _valid(targets, self.ignore_label)
        targets = targets.masked_fill(~valid, self.ignore_label)
        total = F.cross_entropy(
            logits.float(), targets, self.class_weights, ignore_index=self.ignore_label, reduction="sum"
        )
        # Not reduction="mean", which divides by zero where every pixel is ignored.
        return total / self._weigh(targets, valid).sum().clamp(min=_tiny(total))

    def _weigh(self, targets: Tensor, counts: Tensor) -> Tensor:
        """Weight of each pixel: that of its class, 0 where it does not count; all (N, H, W)."""
        return self.class_weights[targets.masked_fill(~counts, 0)] * counts


@PIXEL_LOSS_REGISTRY.register()
class OHEM(CrossEntropy):
    """Cross entropy of the hard pixels alone (online hard example mining; Shrivastava et al., CVPR 2016).

    A pixel is hard if the probability of its class is below ``threshold``. The ``min_kept`` hardest always count.
    """

    @configurable
    def __init__(self, *, threshold: float = 0.9, min_kept: int = 131072, **kwargs):
        """
        Args:
            threshold: probability.
            min_kept: number of pixels of the batch.
            kwargs: see CrossEntropy.

        Raises:
            ValueError: if one of them is out of range.
        """
        super().__init__(**kwargs)
        if not 0 < threshold <= 1 or min_kept < 1:
            raise ValueError(
                "MODEL.PIXEL_LOSS: expected OHEM_THRESHOLD in (0, 1] and OHEM_MIN_KEPT of at least 1, got "
                f"{threshold} and {min_kept}"
            )
        self.max_easy_loss = -math.log(threshold)
        self.min_kept = min_kept

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        loss = cfg.MODEL.PIXEL_LOSS
        return {**super().from_config(cfg), "threshold": loss.OHEM_THRESHOLD, "min_kept": loss.OHEM_MIN_KEPT}

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        valid = _valid(targets, self.ignore_label)
        targets = targets.masked_fill(~valid, self.ignore_label)
        losses = F.cross_entropy(logits.float(), targets, ignore_index=self.ignore_label, reduction="none")
        # No shape depends on the number of pixels that count, so the host never waits for a GPU.
        hardness = losses.detach().masked_fill(~valid, -math.inf)
        hardest = hardness.flatten().topk(min(self.min_kept, hardness.numel()), sorted=False).values
        hard = (hardness > self.max_easy_loss) | (hardness >= hardest.amin())
        weights = self._weigh(targets, hard & valid)
        return (losses * weights).sum() / weights.sum().clamp(min=_tiny(losses))


@PIXEL_LOSS_REGISTRY.register()
class LovaszSoftmax(nn.Module):
    """The Lovász extension of the Jaccard index (Berman et al., CVPR 2018), averaged over the classes in the batch."""

    @configurable
    def __init__(self, *, ignore_label: int = 255):
        """
        Args:
            ignore_label: target of the pixels left out.
        """
        super().__init__()
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        valid = _valid(targets, self.ignore_label).flatten()
        probabilities = logits.float().softmax(dim=1).movedim(1, 0).flatten(1)  # (K, P)
        targets = targets.flatten()
        terms = []
        for label in _classes(targets, valid, logits.shape[1]):
            is_label = valid & (targets == label)
            # Pixels that do not count come last, where they add nothing.
            errors = (is_label.float() - probabilities[label]).abs().masked_fill(~valid, -1.0)
            errors, order = errors.sort(descending=True)
            terms.append((errors * _jaccard_steps(is_label[order], valid[order])).sum())
        return torch.stack(terms).mean() if terms else logits.float().sum() * 0.0


def _classes(targets: Tensor, counts: Tensor, num_classes: int) -> list[int]:
    """The classes of the targets (P,) that count (P,). Each of them takes a sort, so this waits for a GPU."""
    occurs = torch.zeros(num_classes + 1, dtype=torch.bool, device=targets.device)
    occurs.scatter_(0, targets.where(counts, num_classes), True)
    return [label for label, does in enumerate(occurs[:-1].tolist()) if does]


def _jaccard_steps(is_label: Tensor, counts: Tensor) -> Tensor:
    """How much each wrong pixel of a sorted list (P,) adds to the Jaccard loss of a class (Eq. 9)."""
    seen = is_label.cumsum(0)  # in whole numbers: exact
    total = seen[-1]
    union = total + counts.cumsum(0) - seen
    # The differences of the losses 1 - (total - seen) / union, worked out: those of numbers in float32 would be rounded
    # by as much as a step has where there are millions of pixels.
    of_other = (total - seen) / union / (union - 1).clamp(min=1)  # 0 where the only pixel that counts is of the class
    return torch.where(is_label, 1 / union, of_other) * counts


@PIXEL_LOSS_REGISTRY.register()
class RMI(nn.Module):
    """Region mutual information beside binary cross entropy (Zhao et al., NeurIPS 2019).

    Each pixel of the pooled label map and of the pooled sigmoid map of a class stands for the R x R pixels around it,
    so that the maps are samples of random vectors Y and P of R^2 entries. A lower bound of their mutual information is

        I = -1/2 log det(S_YY - S_YP S_PP^-1 S_YP^T) / R^2

    with the scatter matrices S of an image, in double precision and with 5e-4 added to the diagonals of S_PP and of the
    difference. The loss is (1 - w) BCE - w sum over the classes of I, the latter averaged over the images that have a
    valid pixel. BCE sums over the classes and averages over the valid pixels; ignored ones are 0 in both maps.
    """

    DIAGONAL = 5e-4

    @configurable
    def __init__(
        self, *, num_classes: int, ignore_label: int = 255, weight: float = 0.5, stride: int = 4, radius: int = 3
    ):
        """
        Args:
            num_classes: K.
            ignore_label: target of the pixels left out.
            weight: w.
            stride: factor by which maps are pooled (average) first.
            radius: R.
        """
        super().__init__()
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.weight = weight
        self.stride = stride
        self.radius = radius

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        loss = cfg.MODEL.PIXEL_LOSS
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "weight": loss.RMI_WEIGHT,
            "stride": loss.RMI_STRIDE,
            "radius": loss.RMI_RADIUS,
        }

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        least = self.stride * self.radius
        if min(logits.shape[2:]) < least:
            raise ValueError(
                f"MODEL.PIXEL_LOSS.RMI_STRIDE {self.stride} times RMI_RADIUS {self.radius} is {least} pixels: expected "
                f"at most the sides of the logits, {tuple(logits.shape[2:])}"
            )
        logits = logits.float()
        valid = _valid(targets, self.ignore_label)
        mask = valid.unsqueeze(1)
        labels = F.one_hot(targets.masked_fill(~valid, 0), self.num_classes).movedim(3, 1).float() * mask
        entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        entropy = (entropy * mask).sum() / valid.sum().clamp(min=1)
        has_pixels = valid.flatten(1).any(dim=1)
        information = self._information(labels, logits.sigmoid() * mask).sum(dim=1) * has_pixels
        return (1 - self.weight) * entropy - self.weight * information.sum() / has_pixels.sum().clamp(min=1)

    def _information(self, labels: Tensor, probabilities: Tensor) -> Tensor:
        """Lower bounds of the mutual information of maps (N, K, H, W), (N, K)."""
        y, p = self._regions(labels), self._regions(probabilities)
        diagonal = self.DIAGONAL * torch.eye(self.radius**2, dtype=y.dtype, device=y.device)
        yp = y @ p.mT
        # Never singular; solve() itself would wait for a GPU to say so.
        explained = yp @ torch.linalg.solve_ex(p @ p.mT + diagonal, yp.mT).result
        return -0.5 * torch.logdet(y @ y.mT - explained + diagonal).float() / self.radius**2

    def _regions(self, maps: Tensor) -> Tensor:
        """Centred vectors of the regions of maps (N, K, H, W), (N, K, R^2, number of regions), in double precision."""
        pooled = F.avg_pool2d(maps, self.stride)
        regions = F.unfold(pooled.double(), self.radius).unflatten(1, (self.num_classes, -1))
        return regions - regions.mean(dim=-1, keepdim=True)


class ValidPixels(nn.Module):
    """Any loss, of the pixels that count alone: for losses that know no ignore label.

    The loss sees these pixels of the whole batch as one image of one row, so it must not look at where a pixel is.
    """

    def __init__(self, loss: nn.Module, ignore_label: int = 255, target_channel: bool = False):
        """
        Args:
            loss: called with logits (1, K, 1, P) and targets (1, 1, P), gives a scalar.
            ignore_label: target of the pixels left out.
            target_channel: give targets as (1, 1, 1, P), with a channel as losses of MONAI expect it.
        """
        super().__init__()
        self.loss = loss
        self.ignore_label = ignore_label
        self.target_channel = target_channel

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        valid = _valid(targets, self.ignore_label)
        row = logits.float().movedim(1, 0)[:, valid][None, :, None]
        if not row.numel():
            return logits.float().sum() * 0.0
        labels = targets[valid][None, None]
        return self.loss(row, labels[:, None] if self.target_channel else labels)


def _valid(targets: Tensor, ignore_label: int) -> Tensor:
    """Mask of the pixels that count: those of a class."""
    return (targets >= 0) & (targets != ignore_label)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny

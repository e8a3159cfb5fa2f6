"""What sets of anchors look like: their size, balance and alignment."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .anchor_set import AnchorSet
from .device import to_device
from .eager import eager

__all__ = ["describe_anchors"]


@eager
def describe_anchors(anchor_sets: Mapping[str, AnchorSet]) -> dict[str, float]:
    """Describe the anchors of each scale, in time linear in their number; the device is waited for once.

    Args:
        anchor_sets: by scale, each sorted by class.

    Returns:
        "contrast/s/num_anchors", ".../num_classes" and ".../anchors_per_class", and ".../positive_similarity" and
        ".../negative_similarity", the mean cosines of positive and negative pairs (nan where there is none).
    """
    counts = {scale: _count_classes(anchor_set.labels) for scale, anchor_set in anchor_sets.items()}
    sums = [_sum_similarities(anchor_sets[scale].vectors, counts[scale]) for scale in anchor_sets]
    return {
        f"contrast/{scale}/{key}": value
        for (scale, of_classes), similarities in zip(counts.items(), torch.stack(sums).tolist())
        for key, value in _describe(of_classes, *similarities).items()
    }


def _count_classes(labels: Tensor) -> list[int]:
    counts: list[int] = torch.unique_consecutive(labels.cpu(), return_counts=True)[1].tolist()
    return counts


@torch.no_grad()
def _sum_similarities(vectors: Tensor, counts: Sequence[int]) -> Tensor:
    """(3,): sums of the cosines of all pairs, of those within a class, and of each anchor with itself.

    The sum of all similarities within a class is the squared length of the sum of its anchors.
    """
    index = to_device(
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64)), vectors.device
    )
    sums = vectors.new_zeros(len(counts), vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, vectors.double())
    return torch.stack([sums.sum(0).square().sum(), sums.square().sum(), vectors.double().square().sum()])


def _describe(counts: Sequence[int], total: float, within: float, itself: float) -> dict[str, float]:
    size, num_within = sum(counts), sum(count**2 for count in counts)
    positives, negatives = num_within - size, size**2 - num_within
    return {
        "num_anchors": float(size),
        "num_classes": float(len(counts)),
        "anchors_per_class": size / max(len(counts), 1),
        "positive_similarity": (within - itself) / positives if positives else math.nan,
        "negative_similarity": (total - within) / negatives if negatives else math.nan,
    }

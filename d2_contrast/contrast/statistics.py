"""What sets of anchors look like: their size, balance and alignment."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .anchor_set import AnchorSet
from .eager import eager

__all__ = ["describe_anchors"]


@eager
def describe_anchors(anchor_sets: Mapping[str, AnchorSet]) -> dict[str, Tensor]:
    """Describe the anchors of each scale, in time linear in their number.

    Args:
        anchor_sets: by scale, each sorted by class.

    Returns:
        Scalars "contrast/s/num_anchors", ".../num_classes" and ".../anchors_per_class", and
        ".../positive_similarity" and ".../negative_similarity", the mean cosines of positive and negative pairs (nan
        where there is none).
    """
    return {
        f"contrast/{scale}/{key}": value
        for scale, anchor_set in anchor_sets.items()
        for key, value in _describe(anchor_set).items()
    }


@torch.no_grad()
def _describe(anchor_set: AnchorSet) -> dict[str, Tensor]:
    """The sum of all similarities within a class is the squared length of the sum of its anchors."""
    vectors, labels = anchor_set
    _, index, counts = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    index, counts = index.to(vectors.device), counts.to(vectors.device, torch.float64)
    sums = vectors.new_zeros(len(counts), vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, vectors.double())
    total = sums.sum(0).square().sum()
    within = sums.square().sum()
    size = counts.sum()
    itself = vectors.double().square().sum()
    num_classes = size.new_tensor(len(counts))
    return {
        "num_anchors": size.float(),
        "num_classes": num_classes.float(),
        "anchors_per_class": (size / num_classes.clamp(min=1)).float(),
        "positive_similarity": ((within - itself) / (counts.square().sum() - size)).float(),
        "negative_similarity": ((total - within) / (size.square() - counts.square().sum())).float(),
    }

"""What is contrasted: a set of anchors and their classes."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AnchorSet", "check_sets"]

# How far the length of an anchor may be from 1, which is what rounding to bfloat16 can do to it.
_TOLERANCE = 0.01


class AnchorSet(NamedTuple):
    """The anchors of one scale.

    Attributes:
        vectors: (A, D), the anchors, of unit length.
        labels: (A,), integer class ids.
    """

    vectors: Tensor
    labels: Tensor


def check_sets(sets: Mapping[str, AnchorSet]) -> None:
    """Check anchor sets that a caller made; names are for the messages. This waits for the device once.

    Raises:
        ValueError: shapes or types do not fit, or an anchor is not finite or not of unit length. Vectors of zeros are
            taken, since normalising leaves them as they are.
    """
    for name, (vectors, labels) in sets.items():
        if vectors.dim() != 2 or not vectors.is_floating_point():
            raise ValueError(
                f"{name} must be floating point of shape (count, dim), got {vectors.dtype} of shape "
                f"{tuple(vectors.shape)}"
            )
        if labels.shape != vectors.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels of {name} must be {len(vectors)} integers, got {labels.dtype} of shape {tuple(labels.shape)}"
            )
    lengths = {name: vectors.detach().float().norm(dim=1) for name, (vectors, _) in sets.items()}
    # NaN is wrong, too.
    wrong = {name: ~((length - 1).abs() <= _TOLERANCE) & (length != 0) for name, length in lengths.items()}
    if not torch.stack([where.any() for where in wrong.values()]).any():
        return
    name = next(name for name, where in wrong.items() if where.any())
    vectors = sets[name].vectors
    first = int(wrong[name].nonzero()[0])
    where = f"{name}: {int(wrong[name].sum())} of {len(vectors)} vectors are wrong, the first is number {first}"
    if not vectors[first].isfinite().all():
        raise ValueError(f"{where}, which is not finite")
    raise ValueError(
        f"{where}, which is not of unit length but {lengths[name][first].item():.4g}: normalise them by "
        "torch.nn.functional.normalize(..., dim=1)"
    )

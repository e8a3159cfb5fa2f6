"""Supervised InfoNCE (Pissas et al., ECCV 2022, Eq. 1-2), exact and linear in memory.

With s_ij = z_i . z_j / tau, N(i) and P(i) the negatives and positives of anchor i, w_i = 1 / (|A| |P(i)|), the loss is

    L = sum_i w_i sum_{j in P(i)} log(1 + n_i exp(-s_ij)),    n_i = sum_{k in N(i)} exp(s_ik).

Its gradient with respect to the scores needs two numbers for each anchor, n_i and g_i:

    dL/ds_ik = g_i exp(s_ik)     for a negative k,    g_i = w_i sum_{j in P(i)} p_ij / n_i,
    dL/ds_ij = -w_i p_ij         for a positive j,    p_ij = n_i / (exp(s_ij) + n_i).

In the code:

    score           s_ij
    weight          w_i
    negative_sum    n_i
    excess          log n_i - s_ij of a positive j, by which the negatives exceed it; its term of the loss is
                    softplus(excess)
    pull            p_ij = sigmoid(excess), between 0 and 1, with which i is drawn to its positive j
    push            g_i; i is driven from its negative k with push times exp(s_ik)

n_i and g_i are known once all scores of an anchor have been seen. The gradients therefore follow in the forward pass,
and the backward pass multiplies them by a number. The scores are visited in one of two ways, see ``score_tiles``.

From one set to another, by bands of rows. A band holds all scores of its anchors, so that its share of the gradients
follows in the same visit: three matrix products in all.

Within a set, by tiles. The scores are symmetric: tiles of negatives on and above the diagonal suffice, and the two
gradients of a tile merge. Since n_i is complete only when all tiles have been seen, tiles of negatives are visited
twice, and computed again if they are too many to be kept: one and a half to two matrix products in all.
"""

import math
from itertools import product
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .anchor_set import AnchorSet, check_sets
from .device import to_device
from .eager import eager
from .precision import float32_products
from .score_tiles import (
    NegativeTiles,
    SortedSet,
    Tiling,
    classes_of_equal_size,
    cut_evenly,
    for_each_anchor,
    visit_bands,
)

__all__ = ["check_temperature", "info_nce", "supervised_info_nce"]

# Scores of unit vectors lie within +- 1 / tau. Up to these bounds no sum of their exponentials overflows and none
# underflows, so that no maximum has to be subtracted.
_MAX_SCORE = {torch.float32: 70.0, torch.float64: 650.0}

# From here on log(1 + exp(x)) is x, to double precision.
_SOFTPLUS_IS_LINEAR = 50.0

# oneMKL picks the kernel of a function when it is first called. Where two threads do so at once, one may compute its
# half of that call with errors of 1e-4 (pytorch/pytorch#188792): so one thread makes the first call.
for _dtype in (torch.float32, torch.float64):
    torch.ones(1, dtype=_dtype).exp_().log_()


@eager
def supervised_info_nce(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = None,
    contrast_labels: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Supervised InfoNCE of Eq. 1-2, within one set of anchors or from one set to another.

    The denominator of a term holds its own positive and all negatives, not the other positives. An anchor without a
    positive or without a negative contributes 0 and is counted in the mean. Memory grows with A + B, not with A x B.
    Half-precision inputs, and any input under autocast, are computed in float32.

    Args:
        anchors: (A, D), unit length.
        anchor_labels: (A,), integer class ids, in any order (sorted ones save a copy).
        contrast: (B, D), unit length; None contrasts the anchors with each other, none with itself.
        contrast_labels: (B,), integer class ids.
        temperature: tau, at least 0.002; below 0.0143 it is computed in float64.

    Returns:
        Scalar, the mean over all anchors; 0 if one of the sets is empty.

    Raises:
        ValueError: shapes do not fit, labels are not integers, vectors are not finite or not of unit length, or the
            temperature is out of range.
    """
    check_temperature(temperature)
    anchor_set = AnchorSet(anchors, anchor_labels)
    if contrast is None and contrast_labels is None:
        check_sets({"anchors": anchor_set})
        return info_nce(anchor_set, None, temperature)
    if contrast is None or contrast_labels is None:
        raise ValueError("contrast and contrast_labels must be given together")
    contrast_set = AnchorSet(contrast, contrast_labels)
    check_sets({"anchors": anchor_set, "contrast": contrast_set})
    if contrast.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"anchors and contrast must have the same dimension, got {anchors.shape[1]} and {contrast.shape[1]}"
        )
    return info_nce(anchor_set, contrast_set, temperature)


def info_nce(
    anchors: AnchorSet,
    contrast: AnchorSet | None,
    temperature: float,
    tiling: Tiling | None = None,
    tf32: bool = False,
) -> Tensor:
    """``supervised_info_nce`` of sets that are known to be sound; the tiling is that of their device unless given.

    With tf32 a GPU computes products of float32 in TF32: faster, and exp(s_ij) is off by up to 2e-3.
    """
    device = anchors.vectors.device
    out_dtype = torch.float64 if anchors.vectors.dtype == torch.float64 else torch.float32
    dtype = out_dtype if 1 / temperature <= _MAX_SCORE[out_dtype] else torch.float64
    with torch.autocast(device.type, enabled=False):
        vectors, sizes = _sort_by_class(anchors, dtype)
        others, other_sizes = (None, sizes) if contrast is None else _sort_by_class(contrast, dtype)
        classes = sorted(sizes.keys() | other_sizes.keys())
        walk = _Walk(
            counts=[sizes.get(label, 0) for label in classes],
            other_counts=[other_sizes.get(label, 0) for label in classes],
            temperature=temperature,
            tiling=tiling or Tiling.of_device(device),
        )
        with float32_products(tf32):  # all of them are in the forward pass
            loss: Tensor = _InfoNCE.apply(vectors, others, walk)
        return loss.to(out_dtype)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless scores of +- 1 / temperature can be handled."""
    if not isinstance(temperature, Real) or not (temperature > 0 and 1 / temperature <= _MAX_SCORE[torch.float64]):
        raise ValueError(f"temperature must be a number of at least 0.002, got {temperature!r}")


def _sort_by_class(anchor_set: AnchorSet, dtype: torch.dtype) -> tuple[Tensor, dict[int, int]]:
    """The anchors sorted by class, and how many belong to each class."""
    vectors = anchor_set.vectors.to(dtype)
    labels = anchor_set.labels.to("cpu", torch.long)  # if they are on the device it is waited for, here alone
    if (labels[1:] < labels[:-1]).any():
        labels, order = labels.sort()
        vectors = vectors.index_select(0, to_device(order, vectors.device))
    classes, counts = torch.unique_consecutive(labels, return_counts=True)
    return vectors, dict(zip(classes.tolist(), counts.tolist()))


class _Walk(NamedTuple):
    """What the loss needs beside the anchors: those of each class in both sets, tau, and how scores are visited."""

    counts: list[int]
    other_counts: list[int]
    temperature: float
    tiling: Tiling


class _InfoNCE(torch.autograd.Function):
    """The loss within one set (others is None) or from one to another, both sorted by class."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, others: Tensor | None, walk: _Walk) -> Tensor:
        gradient = torch.zeros_like(anchors) if ctx.needs_input_grad[0] else None
        other_gradient = torch.zeros_like(others) if others is not None and ctx.needs_input_grad[1] else None
        own = SortedSet(anchors, walk.counts)
        if not len(anchors) or (others is not None and not len(others)):
            loss = anchors.new_zeros(())
        elif others is None:
            loss = _contrast_within(own, walk.temperature, walk.tiling, gradient)
        else:
            sets = own, SortedSet(others, walk.other_counts)
            loss = _contrast_across(*sets, walk.temperature, walk.tiling, (gradient, other_gradient))
        ctx.temperature = walk.temperature
        ctx.save_for_backward(gradient, other_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # the gradients are constants here: derivatives of them would be 0, not an error
            raise RuntimeError("the contrastive loss has no second derivative: expected create_graph=False")
        gradient, other_gradient = (None if g is None else g * (grad / ctx.temperature) for g in ctx.saved_tensors)
        return gradient, other_gradient, None


def _contrast_across(
    anchors: SortedSet,
    others: SortedSet,
    temperature: float,
    tiling: Tiling,
    gradients: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """The loss from one set to another; tau times its gradients are added to those that are wanted."""
    gradient, other_gradient = gradients
    num_anchors = len(anchors.vectors)
    loss = anchors.vectors.new_zeros(())
    positives = torch.tensor(others.counts, dtype=anchors.vectors.dtype).clamp(min=1)
    all_weights = for_each_anchor(1 / (num_anchors * positives), anchors)
    for rows, block, exponentials, block_scores, is_positive in visit_bands(anchors, others, temperature, tiling):
        weight = all_weights[rows]
        negative_sum = exponentials.sum(1)
        excess = torch.sub(negative_sum.log()[:, None], block_scores, out=block_scores)
        pull = excess.sigmoid().mul_(is_positive)
        loss += _softplus(excess).mul_(is_positive).sum(1) @ weight

        # The gradient of the scores divided by push: exp(s_ik) of negatives, and - n_i p_ij / sum_j p_ij of positives.
        pull_sum = pull.sum(1)
        push = torch.where(negative_sum > 0, pull_sum * weight / negative_sum, 0)[:, None]
        slopes = exponentials
        slopes[:, block].addcmul_(pull, torch.where(pull_sum > 0, negative_sum / pull_sum, 0)[:, None], value=-1)
        if gradient is not None:
            gradient[rows].addcmul_(slopes @ others.vectors, push)
        if other_gradient is not None:
            other_gradient.addmm_(slopes.t(), anchors.vectors[rows] * push)
    return loss


def _contrast_within(anchors: SortedSet, temperature: float, tiling: Tiling, gradient: Tensor | None) -> Tensor:
    """The loss within a set; tau times its gradient is added to the one given."""
    vectors = anchors.vectors
    tiles = NegativeTiles(anchors, temperature, tiling, keep=gradient is not None)
    negative_sum = vectors.new_zeros(len(vectors))
    for rows, columns, exponentials in tiles.visit():
        # Not +=, which would also copy the sum onto itself.
        negative_sum[rows].add_(exponentials.sum(1))
        if rows != columns:
            negative_sum[columns].add_(exponentials.sum(0))

    loss, push = vectors.new_zeros(()), torch.zeros_like(negative_sum)
    for where, size in classes_of_equal_size(anchors, tiling):
        weight = 1 / ((size - 1) * len(vectors))
        members, member_sums = vectors[where].view(-1, size, vectors.shape[1]), negative_sum[where].view(-1, size)
        pulled = None if gradient is None else torch.zeros_like(members)
        terms, pull_sum = _visit_positives(members, member_sums.log(), temperature, tiling.tile_rows, pulled)
        loss += weight * terms
        if gradient is not None and pulled is not None:
            push[where] = torch.where(member_sums > 0, weight * pull_sum / member_sums, 0).flatten()
            gradient[where] -= weight * pulled.flatten(0, 1)
    if gradient is None:
        return loss

    for rows, columns, exponentials in tiles.visit():
        slopes = exponentials.mul_(push[rows, None] + push[columns])
        gradient[rows].addmm_(slopes, vectors[columns])
        if rows != columns:
            gradient[columns].addmm_(slopes.t(), vectors[rows])
    return loss


def _visit_positives(
    members: Tensor, log_negative_sum: Tensor, temperature: float, tile_rows: int, pulled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The terms of positives within classes of equal size.

    Args:
        members: (classes, size, D).
        log_negative_sum: (classes, size), log n_i.
        temperature: tau.
        tile_rows: positives are visited in tiles of as many rows and columns.
        pulled: (classes, size, D), to which sum_j (p_ij + p_ji) z_j is added.

    Returns:
        The sum of all terms, and (classes, size), sum_j p_ij.
    """
    size = members.shape[1]
    spans = [slice(start, stop) for start, stop in cut_evenly(size, tile_rows)]
    total, pull_sum = members.new_zeros(()), torch.zeros_like(log_negative_sum)
    for rows, columns in product(spans, spans):
        own, others = members[:, rows], members[:, columns]
        excess = torch.baddbmm(log_negative_sum[:, rows, None], own, others.mT, alpha=-1 / temperature)
        if rows == columns:
            excess.diagonal(dim1=1, dim2=2).fill_(-math.inf)  # no anchor is its own positive
        pull = excess.sigmoid()
        pull_sum[:, rows].add_(pull.sum(2))
        total += _softplus(excess).sum()
        if pulled is not None:
            pulled[:, rows].baddbmm_(pull, others)
            pulled[:, columns].baddbmm_(pull.mT, own)
    return total, pull_sum


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to full relative precision."""
    return F.softplus(x, threshold=_SOFTPLUS_IS_LINEAR)

"""Supervised InfoNCE (Pissas et al., ECCV 2022, Eq. 1-2), exact and linear in memory.

With s_ij = z_i . z_j / tau, N(i) and P(i) the negatives and positives of anchor i, w_i = 1 / (|A| |P(i)|), the loss is

    L = sum_i w_i sum_{j in P(i)} log(1 + n_i exp(-s_ij)),    n_i = sum_{k in N(i)} exp(s_ik).

Its gradient with respect to the scores needs two numbers per anchor, n_i and g_i = w_i r_i / n_i, where r_i sums the
pulls p_ij = n_i / (exp(s_ij) + n_i) over P(i):

    dL/ds_ik = g_i exp(s_ik)     for a negative k,
    dL/ds_ij = -w_i p_ij         for a positive j.

Both are known once all scores of the anchor have been seen, so that the gradients follow in the forward pass, and the
backward pass has but to multiply. Anchors are sorted by class, which confines the positives of a few rows to a block of
columns: only there are masks needed. The scores are visited in one of two ways.

From one set to another, by bands of rows. A band holds all scores of its anchors, so that its share of the gradients
follows in the same visit: three matrix products in all.

Within a set, by tiles. The scores are symmetric: tiles of negatives on and above the diagonal suffice, and the two
gradients of a tile merge. Since n_i is complete only when all tiles have been seen, tiles of negatives are visited
twice, and computed again if they are too many to be kept: one and a half to two matrix products in all.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["check_temperature", "supervised_info_nce"]


class _Tiling(NamedTuple):
    band_rows: int  # rows that are visited together
    band_scores: int  # or more rows, if they have no more than so many scores
    tile_rows: int  # rows and columns of a tile
    kept_scores: int  # tiles are kept up to so many scores

    def band(self, columns: int) -> int:
        """The rows that are visited together if each has so many scores."""
        return max(self.band_rows, self.band_scores // columns)


# On a CPU, scores should stay in the cache between passes. On an accelerator, a visit should keep it busy.
_TILING = {"cpu": _Tiling(band_rows=512, band_scores=1 << 17, tile_rows=768, kept_scores=1 << 23)}
_TILING_ON_ACCELERATOR = _Tiling(band_rows=256, band_scores=1 << 23, tile_rows=2048, kept_scores=1 << 23)

# Scores of unit vectors lie within +- 1 / tau. Up to these bounds no sum of their exponentials overflows and none
# underflows, so that no maximum has to be subtracted.
_MAX_SCORE = {torch.float32: 70.0, torch.float64: 650.0}

# oneMKL picks the kernel of a function when it is first called. Where two threads do so at once, one may compute its
# half of that call with errors of 1e-4 (pytorch/pytorch#188792): so one thread makes the first call.
for _dtype in (torch.float32, torch.float64):
    torch.ones(1, dtype=_dtype).exp_().log_()


@torch.compiler.disable
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
        ValueError: on shapes that do not fit, labels that are not integers, or a temperature out of range.
    """
    check_temperature(temperature)
    _check_set("anchors", anchors, anchor_labels)
    if (contrast is None) != (contrast_labels is None):
        raise ValueError("contrast and contrast_labels must be given together")
    if contrast is not None:
        _check_set("contrast", contrast, contrast_labels)
        if contrast.shape[1] != anchors.shape[1]:
            raise ValueError(
                f"anchors and contrast must have the same dimension, got {anchors.shape[1]} and {contrast.shape[1]}"
            )
    out_dtype = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    dtype = out_dtype if 1 / temperature <= _MAX_SCORE[out_dtype] else torch.float64

    with torch.autocast(anchors.device.type, enabled=False):
        za, counts_a = _sort_by_class(anchors.to(dtype), anchor_labels)
        if contrast is None:
            return _InfoNCE.apply(za, None, list(counts_a.values()), None, temperature).to(out_dtype)
        zb, counts_b = _sort_by_class(contrast.to(dtype), contrast_labels)
        classes = sorted(counts_a.keys() | counts_b.keys())
        counts = ([c.get(label, 0) for label in classes] for c in (counts_a, counts_b))
        return _InfoNCE.apply(za, zb, *counts, temperature).to(out_dtype)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless scores of +- 1 / temperature can be handled."""
    if not (temperature > 0 and 1 / temperature <= _MAX_SCORE[torch.float64]):
        raise ValueError(f"temperature must be at least 0.002, got {temperature}")


def _check_set(name: str, vectors: Tensor, labels: Tensor) -> None:
    if vectors.dim() != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"{name} must be floating point of shape (count, dim), got {vectors.dtype} of shape {tuple(vectors.shape)}"
        )
    if labels.shape != vectors.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels of {name} must be {len(vectors)} integers, got {labels.dtype} of shape {tuple(labels.shape)}"
        )


def _sort_by_class(vectors: Tensor, labels: Tensor) -> tuple[Tensor, dict[int, int]]:
    """The vectors sorted by class, and how many belong to each class."""
    labels = labels.cpu()  # waits for the device; nothing else here does
    if (labels[1:] < labels[:-1]).any():
        labels, order = labels.sort()
        vectors = vectors.index_select(0, order.to(vectors.device, non_blocking=True))
    classes, counts = labels.unique_consecutive(return_counts=True)
    return vectors, dict(zip(classes.tolist(), counts.tolist()))


def _tiling(z: Tensor) -> _Tiling:
    return _TILING.get(z.device.type, _TILING_ON_ACCELERATOR)


class _Run(NamedTuple):
    """Anchors [start, stop) of a set sorted by class, their classes from first to last."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)


def _cut(counts: list[int], most: int) -> list[_Run]:
    """Cut a set, so many anchors of each class, into runs of whole classes, and parts of classes that are too large."""
    runs: list[_Run] = []
    start = 0
    for label, count in enumerate(counts):
        if runs and start + count - runs[-1].start <= most:
            runs[-1] = runs[-1]._replace(stop=start + count, last=label)
        else:
            parts = -(-count // most)
            cuts = [start + count * i // parts for i in range(parts + 1)] if count else []
            runs += [_Run(a, b, label, label) for a, b in zip(cuts, cuts[1:])]
        start += count
    return runs


def _classes(counts: list[int], like: Tensor) -> Tensor:
    """The class of each anchor, as floating point: comparing these into floating-point masks is several times faster
    on CPUs."""
    return _for_each_anchor(torch.arange(len(counts), dtype=like.dtype), counts, like.device)


def _for_each_anchor(values: Tensor, counts: list[int], device: torch.device) -> Tensor:
    """The value of its class for each anchor of a set sorted by class, brought to a device without waiting for it."""
    return values.repeat_interleave(torch.tensor(counts)).to(device, non_blocking=True)


class _InfoNCE(torch.autograd.Function):
    """The loss within one set (zb is None) or from one to another, both sorted by class."""

    @staticmethod
    def forward(ctx, za, zb, counts_a, counts_b, temperature):
        grad_a, grad_b = (torch.zeros_like(z) if ctx.needs_input_grad[i] else None for i, z in enumerate((za, zb)))
        if not len(za) or (zb is not None and not len(zb)):
            loss = za.new_zeros(())
        elif zb is None:
            loss = _contrast_within(za, counts_a, temperature, grad_a)
        else:
            loss = _contrast_across(za, zb, counts_a, counts_b, temperature, grad_a, grad_b)
        ctx.temperature = temperature
        ctx.save_for_backward(grad_a, grad_b)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = (None if g is None else g * (grad / ctx.temperature) for g in ctx.saved_tensors)
        return *grads, None, None, None


def _contrast_across(
    za: Tensor,
    zb: Tensor,
    counts_a: list[int],
    counts_b: list[int],
    temperature: float,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> Tensor:
    """The loss from one set to another, by bands; tau times its gradients are added to those that are wanted."""
    most = _tiling(za).band(len(zb))
    class_a, class_b = _classes(counts_a, za), _classes(counts_b, zb)
    weights = 1 / (len(za) * torch.tensor(counts_b, dtype=za.dtype).clamp(min=1))
    weight = _for_each_anchor(weights, counts_a, za.device)
    ends = list(accumulate(counts_b, initial=0))
    buffer = za.new_empty(min(most, len(za)), len(zb))
    loss = za.new_zeros(())
    for r in _cut(counts_a, most):
        z, w = za[r.span], weight[r.span]
        block = slice(ends[r.first], ends[r.last + 1])  # the only columns that may hold positives
        e = buffer[: len(z)].addmm_(z, zb.t(), beta=0, alpha=1 / temperature)
        x = e[:, block].clone()
        positive = torch.eq(class_a[r.span, None], class_b[block], out=torch.empty_like(x))
        e.exp_()[:, block].mul_(1 - positive)

        n = e.sum(1)
        x = torch.sub(n.log()[:, None], x, out=x)
        pull = x.sigmoid().mul_(positive)
        loss += _softplus_(x).mul_(positive).sum(1) @ w

        # The gradient of the scores: g_i times e of negatives and - pull n_i / r_i of positives.
        pulls = pull.sum(1)
        e[:, block].addcmul_(pull, torch.where(pulls > 0, n / pulls, 0)[:, None], value=-1)
        g = torch.where(n > 0, pulls * w / n, 0)[:, None]
        if grad_a is not None:
            grad_a[r.span].addcmul_(e @ zb, g)
        if grad_b is not None:
            grad_b.addmm_(e.t(), z * g)
    return loss


def _contrast_within(z: Tensor, counts: list[int], temperature: float, grad: Tensor | None) -> Tensor:
    """The loss within a set; tau times its gradient is added to the one given."""
    tiles = _NegativeTiles(z, counts, temperature, keep=grad is not None)
    n = z.new_zeros(len(z))
    for r, c, e in tiles.visit():
        n[r.span] += e.sum(1)
        if r != c:
            n[c.span] += e.sum(0)

    loss, g = z.new_zeros(()), torch.zeros_like(n)
    for rows, size in _classes_of_equal_size(counts, z):
        w = 1 / ((size - 1) * len(z))
        members, members_n = z[rows].view(-1, size, z.shape[1]), n[rows].view(-1, size)
        pulled = None if grad is None else torch.zeros_like(members)
        softplus, pulls = _visit_positives(members, members_n, temperature, pulled)
        loss += w * softplus
        if grad is not None:
            g[rows] = torch.where(members_n > 0, w * pulls / members_n, 0).flatten()
            grad[rows] -= w * pulled.flatten(0, 1)
    if grad is None:
        return loss

    for r, c, e in tiles.visit():
        e.mul_(g[r.span, None] + g[c.span])
        grad[r.span].addmm_(e, z[c.span])
        if r != c:
            grad[c.span].addmm_(e.t(), z[r.span])
    return loss


def _classes_of_equal_size(counts: list[int], z: Tensor) -> Iterator[tuple[slice | Tensor, int]]:
    """Yield the rows of classes whose positives are visited together, and the size of each; no class of size 1."""
    starts = defaultdict(list)
    for start, size in zip(accumulate(counts, initial=0), counts):
        if size > 1:
            starts[size].append(start)
    for size, all_starts in starts.items():
        together = max(1, _tiling(z).band(size) // size)
        for i in range(0, len(all_starts), together):
            some = all_starts[i : i + together]
            if some[-1] - some[0] == size * (len(some) - 1):  # one after the other
                yield slice(some[0], some[-1] + size), size
            else:
                rows = (torch.tensor(some)[:, None] + torch.arange(size)).flatten()
                yield rows.to(z.device, non_blocking=True), size


class _NegativeTiles:
    """The scores of negatives within a set sorted by class, tile by tile, on and above the diagonal."""

    def __init__(self, z: Tensor, counts: list[int], temperature: float, keep: bool):
        """keep: remember tiles for a second visit, as many as the tiling allows."""
        self.z = z
        self.temperature = temperature
        self._class = _classes(counts, z)
        self._runs = _cut(counts, _tiling(z).tile_rows)
        self._room = _tiling(z).kept_scores if keep else 0
        self._kept: dict[tuple[_Run, _Run], Tensor] = {}
        side = max(r.stop - r.start for r in self._runs)
        self._buffer = z.new_empty(side * side)

    def visit(self) -> Iterator[tuple[_Run, _Run, Tensor]]:
        """Yield rows, columns, and exp of the scores of negatives, 0 elsewhere, for each tile that holds some.

        In the last visit they may be overwritten.
        """
        for i, r in enumerate(self._runs):
            for c in self._runs[i:]:
                if r.first == r.last == c.first == c.last:
                    continue
                e = self._kept.get((r, c))
                if e is None:
                    e = self._place(r, c)
                    e.addmm_(self.z[r.span], self.z[c.span].t(), beta=0, alpha=1 / self.temperature).exp_()
                    if c.first <= r.last:
                        e.mul_(torch.ne(self._class[r.span, None], self._class[c.span], out=torch.empty_like(e)))
                yield r, c, e

    def _place(self, r: _Run, c: _Run) -> Tensor:
        """Where a tile goes: memory of its own as long as there is room."""
        height, width = r.stop - r.start, c.stop - c.start
        if height * width > self._room:
            return self._buffer[: height * width].view(height, width)
        self._room -= height * width
        self._kept[r, c] = self.z.new_empty(height, width)
        return self._kept[r, c]


def _visit_positives(z: Tensor, n: Tensor, temperature: float, pulled: Tensor | None) -> tuple[Tensor, Tensor]:
    """The terms of positives within classes of equal size.

    Args:
        z: (classes, size, D).
        n: (classes, size), the n_i.
        pulled: (classes, size, D), to which sum_j (p_ij + p_ji) z_j is added.

    Returns:
        The sum of all terms, and (classes, size), sum_j p_ij.
    """
    side, size = _tiling(z).tile_rows, z.shape[1]
    spans = [slice(start, start + side) for start in range(0, size, side)]
    total, pulls = z.new_zeros(()), torch.zeros_like(n)
    for rows, cols in product(spans, spans):
        x = torch.baddbmm(n[:, rows, None].log(), z[:, rows], z[:, cols].mT, alpha=-1 / temperature)
        if rows == cols:
            x.diagonal(dim1=1, dim2=2).fill_(-math.inf)  # no anchor is its own positive
        pull = x.sigmoid()
        pulls[:, rows] += pull.sum(2)
        total += _softplus_(x).sum()
        if pulled is not None:
            pulled[:, rows].baddbmm_(pull, z[:, cols])
            pulled[:, cols].baddbmm_(pull.mT, z[:, rows])
    return total, pulls


def _softplus_(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to full relative precision, in place.

    max(x, 0) + 2 atanh(v / (v + 2)) with v = exp(-|x|); log1p takes ten times as long on some CPUs.
    """
    v = x.abs().neg_().exp_()
    return x.clamp_(min=0).add_(v.div_(v + 2).atanh_(), alpha=2)

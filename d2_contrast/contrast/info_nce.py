"""Supervised InfoNCE (Pissas et al., ECCV 2022, Eq. 1-2), exact and linear in memory.

With s_ij = z_i . z_j / tau, N(i) and P(i) the negatives and positives of anchor i, the loss is

    L = 1/|A| sum_i 1/|P(i)| sum_{j in P(i)} log(1 + n_i exp(-s_ij)),    n_i = sum_{k in N(i)} exp(s_ik).

Its gradient with respect to the scores needs two numbers per anchor, n_i and
g_i = w_i sum_{j in P(i)} 1 / (exp(s_ij) + n_i) with w_i = 1 / (|A| |P(i)|):

    dL/ds_ik = g_i exp(s_ik)                        for a negative k,
    dL/ds_ij = -w_i n_i / (exp(s_ij) + n_i)         for a positive j.

So the scores are visited tile by tile: those of negatives once to collect n_i, those of positives to collect g_i, and
both again in the backward pass. Anchors are sorted by class, which confines positives to few tiles: only these know
masks. Within one set the scores are symmetric: tiles of negatives on and above the diagonal suffice, and the two
gradients of a tile merge.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["check_temperature", "supervised_info_nce"]


class _RunLength(NamedTuple):
    """How a set sorted by class is cut into the rows or columns of tiles."""

    joined: int  # classes are joined up to so many anchors
    most: int  # a class with more is divided


class _Tiling(NamedTuple):
    negatives: _RunLength
    positives: _RunLength


# On a CPU a tile should stay in the cache between passes, and one of positives should hold little else. On an
# accelerator tiles should be large enough to keep it busy.
_TILING = {"cpu": _Tiling(_RunLength(768, 768), _RunLength(128, 512))}
_TILING_ON_ACCELERATOR = _Tiling(_RunLength(2048, 2048), _RunLength(2048, 2048))

# Scores of unit vectors lie within +- 1 / tau. Up to these bounds no sum of their exponentials overflows and none
# underflows, so that no maximum has to be subtracted.
_MAX_SCORE = {torch.float32: 70.0, torch.float64: 650.0}


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
        za, labels_a, counts_a = _sort_by_class(anchors.to(dtype), anchor_labels)
        if contrast is None:
            layout = dict(enumerate(counts_a.tolist()))
            return _InfoNCE.apply(za, None, layout, layout, temperature).to(out_dtype)
        zb, labels_b, counts_b = _sort_by_class(contrast.to(dtype), contrast_labels)
        classes = torch.cat((labels_a, labels_b)).unique()
        layouts = [
            dict(zip(torch.searchsorted(classes, labels).tolist(), counts.tolist()))
            for labels, counts in ((labels_a, counts_a), (labels_b, counts_b))
        ]
        return _InfoNCE.apply(za, zb, *layouts, temperature).to(out_dtype)


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


def _sort_by_class(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors sorted by class; on the host, the labels that occur and how often each does."""
    labels = labels.cpu()  # the only synchronisation with the device
    if (labels[1:] < labels[:-1]).any():
        labels, order = labels.sort()
        vectors = vectors.index_select(0, order.to(vectors.device))
    return vectors, *labels.unique_consecutive(return_counts=True)


# How many anchors of a set belong to each class, in the order of the set. Classes are numbered from 0, for both sets.
_Layout = dict[int, int]


class _Run(NamedTuple):
    """Rows or columns of a tile: anchors [start, stop) of a set sorted by class, their classes from first to last."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)


def _cut(layout: _Layout, length: _RunLength) -> list[_Run]:
    """Cut a set into runs of whole classes, and parts of classes that are larger than a run may be."""
    runs: list[_Run] = []
    start = 0
    for label, count in layout.items():
        if runs and start + count - runs[-1].start <= length.joined:
            runs[-1] = runs[-1]._replace(stop=start + count, last=label)
        else:
            parts = -(-count // length.most)
            cuts = [start + count * i // parts for i in range(parts + 1)]
            runs += [_Run(a, b, label, label) for a, b in zip(cuts, cuts[1:])]
        start += count
    return runs


class _Scores:
    """The scores between two sets sorted by class, or within one (zb is None), computed tile by tile in one buffer."""

    def __init__(self, za: Tensor, zb: Tensor | None, layout_a: _Layout, layout_b: _Layout, temperature: float):
        self.symmetric = zb is None
        self.za, self.zb = za, za if self.symmetric else zb
        self.temperature = temperature
        # Classes as floating point: comparing them into floating-point masks is several times faster on CPUs.
        self._class_a, self._class_b = (
            torch.tensor(list(layout)).repeat_interleave(torch.tensor(list(layout.values()))).to(za)
            for layout in (layout_a, layout_b)
        )
        tiling = _TILING.get(za.device.type, _TILING_ON_ACCELERATOR)
        self._negatives, self._positives = ((_cut(layout_a, length), _cut(layout_b, length)) for length in tiling)
        self._buffer, self._spare = za.new_empty(2, max(self._area(*self._negatives), self._area(*self._positives)))

    @staticmethod
    def _area(rows: list[_Run], cols: list[_Run]) -> int:
        """Elements of the largest tile."""
        return max(r.stop - r.start for r in rows) * max(c.stop - c.start for c in cols)

    def is_diagonal(self, r: _Run, c: _Run) -> bool:
        return self.symmetric and r.start == c.start

    def negatives(self) -> Iterator[tuple[_Run, _Run, Tensor]]:
        """Yield rows, columns, and exp of the scores of negatives, 0 elsewhere, for each tile that holds some.

        They may be overwritten by the caller. Within one set, tiles below the diagonal are left out.
        """
        rows, cols = self._negatives
        for i, r in enumerate(rows):
            for c in cols[i:] if self.symmetric else cols:
                if r.first == r.last == c.first == c.last:
                    continue
                e = self._tile(r, c).exp_()
                if self._share_a_class(r, c):
                    e.mul_(self._compare(torch.ne, r, c))
                yield r, c, e

    def positives(self) -> Iterator[tuple[_Run, _Run, Tensor, Tensor]]:
        """Yield rows, columns, scores, and 1 for positives, 0 elsewhere, for each tile that may hold some.

        Scores may be overwritten by the caller. Within one set, tiles below the diagonal are not left out.
        """
        rows, cols = self._positives
        for r in rows:
            for c in cols:
                if self._share_a_class(r, c):
                    positive = self._compare(torch.eq, r, c)
                    if self.is_diagonal(r, c):
                        positive.fill_diagonal_(0)
                    yield r, c, self._tile(r, c), positive

    def outer_sum(self, r: _Run, c: _Run, values: Tensor) -> Tensor:
        """values_i + values_j for the rows i and columns j of a tile."""
        return torch.add(values[r.span, None], values[c.span], out=self._view(self._spare, r, c))

    def _tile(self, r: _Run, c: _Run) -> Tensor:
        tile = self._view(self._buffer, r, c)
        return tile.addmm_(self.za[r.span], self.zb[c.span].t(), beta=0, alpha=1 / self.temperature)

    def _share_a_class(self, r: _Run, c: _Run) -> bool:
        return r.first <= c.last and c.first <= r.last

    def _compare(self, relation: Callable[..., Tensor], r: _Run, c: _Run) -> Tensor:
        return relation(self._class_a[r.span, None], self._class_b[c.span], out=self._view(self._spare, r, c))

    @staticmethod
    def _view(buffer: Tensor, r: _Run, c: _Run) -> Tensor:
        height, width = r.stop - r.start, c.stop - c.start
        return buffer[: height * width].view(height, width)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, za, zb, layout_a, layout_b, temperature):
        ctx.layout_a, ctx.layout_b, ctx.temperature = layout_a, layout_b, temperature
        if not layout_a or not layout_b:
            ctx.save_for_backward(za, zb)
            return za.new_zeros(())
        scores = _Scores(za, zb, layout_a, layout_b, temperature)

        n = za.new_zeros(len(za))
        for r, c, e in scores.negatives():
            n[r.span] += e.sum(1)
            if scores.symmetric and not scores.is_diagonal(r, c):
                n[c.span] += e.sum(0)

        log_n = n.log()
        loss, ratio, count = torch.zeros_like(n), torch.zeros_like(n), torch.zeros_like(n)
        for r, _, s, positive in scores.positives():
            x = torch.sub(log_n[r.span, None], s, out=s)
            count[r.span] += positive.sum(1)
            ratio[r.span] += x.sigmoid().mul_(positive).sum(1)  # n_i / (exp(s_ij) + n_i)
            loss[r.span] += _softplus_(x).mul_(positive).sum(1)
        w = 1 / (count.clamp(min=1) * len(za))
        g = torch.where(n > 0, ratio * w / n, 0)
        ctx.save_for_backward(za, zb, log_n, g, w)
        return (loss * w).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        za, zb, *statistics = ctx.saved_tensors
        grad_a = torch.zeros_like(za)
        grad_b = None if zb is None else torch.zeros_like(zb)
        if statistics:
            scores = _Scores(za, zb, ctx.layout_a, ctx.layout_b, ctx.temperature)
            with torch.autocast(za.device.type, enabled=False):
                _add_gradients(scores, *statistics, grad_a, grad_b)
            grad_a *= grad / ctx.temperature
            if grad_b is not None:
                grad_b *= grad / ctx.temperature
        return grad_a, grad_b, None, None, None


def _add_gradients(scores: _Scores, log_n: Tensor, g: Tensor, w: Tensor, grad_a: Tensor, grad_b: Tensor | None) -> None:
    """Add the gradients with respect to both sets, times the temperature; log_n, g and w belong to the anchors."""
    for r, c, e in scores.negatives():
        push = e.mul_(scores.outer_sum(r, c, g) if scores.symmetric else g[r.span, None])
        grad_a[r.span].addmm_(push, scores.zb[c.span])
        if not scores.is_diagonal(r, c):
            (grad_a if scores.symmetric else grad_b)[c.span].addmm_(push.t(), scores.za[r.span])

    for r, c, s, positive in scores.positives():
        pull = torch.sub(log_n[r.span, None], s).sigmoid_().mul_(w[r.span, None])
        if scores.symmetric:
            pull += torch.sub(log_n[c.span], s, out=s).sigmoid_().mul_(w[c.span])
        pull.mul_(positive)
        grad_a[r.span].addmm_(pull, scores.zb[c.span], alpha=-1)
        if not scores.symmetric:
            grad_b[c.span].addmm_(pull.t(), scores.za[r.span], alpha=-1)


def _softplus_(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to full relative precision, in place.

    max(x, 0) + 2 atanh(v / (v + 2)) with v = exp(-|x|); log1p takes ten times as long on some CPUs.
    """
    v = x.abs().neg_().exp_()
    return x.clamp_(min=0).add_(v.div_(v + 2).atanh_(), alpha=2)

"""Supervised InfoNCE (Pissas et al., ECCV 2022, Eq. 1-2), exact and linear in memory.

With s_ij = z_i . z_j / tau, N(i) and P(i) the negatives and positives of anchor i, the loss is

    L = 1/|A| sum_i 1/|P(i)| sum_{j in P(i)} log(1 + n_i exp(-s_ij)),    n_i = sum_{k in N(i)} exp(s_ik).

Its gradient with respect to the scores needs two numbers per anchor, n_i and
g_i = w_i sum_{j in P(i)} 1 / (exp(s_ij) + n_i) with w_i = 1 / (|A| |P(i)|):

    dL/ds_ik = g_i exp(s_ik)                        for a negative k,
    dL/ds_ij = -w_i n_i / (exp(s_ij) + n_i)         for a positive j.

Anchors are sorted by class, which confines the positives of a few rows to a block of columns: only there are masks
needed. The scores are visited in one of two ways.

From one set to another, by bands of rows. A band holds all scores of its anchors, so that n_i and g_i are known as soon
as it is computed and the gradients follow in the same visit: three matrix products in all, and the backward pass has
but to multiply.

Within a large set, by tiles. The scores are symmetric: tiles of negatives on and above the diagonal suffice, and the
two gradients of a tile merge, which is two products' worth of work. Since n_i is complete only when all tiles have been
seen, they are visited once to collect it, those of positives to collect g_i, and both again in the backward pass.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["check_temperature", "supervised_info_nce"]


class _RunLength(NamedTuple):
    """How a set sorted by class is cut into the rows or columns that are visited together."""

    joined: int  # classes are joined up to so many anchors
    most: int  # a class with more is divided


class _Tiling(NamedTuple):
    band_rows: int  # rows of a band
    band_scores: int  # a band that would hold more has fewer rows
    symmetric_from: int  # within a set, the number of anchors from which on tiles are faster than bands
    negatives: _RunLength  # rows and columns of a tile
    positives: _RunLength


# On a CPU, scores should stay in the cache between passes, and a tile of positives should hold little else. On an
# accelerator, a visit should be large enough to keep it busy.
_TILING = {
    "cpu": _Tiling(
        band_rows=256,
        band_scores=1 << 24,
        symmetric_from=1200,
        negatives=_RunLength(joined=768, most=768),
        positives=_RunLength(joined=128, most=512),
    )
}
_TILING_ON_ACCELERATOR = _Tiling(
    band_rows=2048,
    band_scores=1 << 23,
    symmetric_from=2048,
    negatives=_RunLength(joined=2048, most=2048),
    positives=_RunLength(joined=2048, most=2048),
)

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
            counts = list(counts_a.values())
            if len(za) < _tiling(za).symmetric_from:
                return _Bands.apply(za, None, counts, counts, temperature).to(out_dtype)
            return _SymmetricTiles.apply(za, counts, temperature).to(out_dtype)
        zb, counts_b = _sort_by_class(contrast.to(dtype), contrast_labels)
        classes = sorted(counts_a.keys() | counts_b.keys())
        counts = ([c.get(label, 0) for label in classes] for c in (counts_a, counts_b))
        return _Bands.apply(za, zb, *counts, temperature).to(out_dtype)


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
    labels = labels.cpu()  # the only synchronisation with the device
    if (labels[1:] < labels[:-1]).any():
        labels, order = labels.sort()
        vectors = vectors.index_select(0, order.to(vectors.device))
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


def _cut(counts: list[int], length: _RunLength) -> list[_Run]:
    """Cut a set, so many anchors of each class, into runs of whole classes, and parts of classes that are too large."""
    runs: list[_Run] = []
    start = 0
    for label, count in enumerate(counts):
        if runs and start + count - runs[-1].start <= length.joined:
            runs[-1] = runs[-1]._replace(stop=start + count, last=label)
        else:
            parts = -(-count // length.most)
            cuts = [start + count * i // parts for i in range(parts + 1)] if count else []
            runs += [_Run(a, b, label, label) for a, b in zip(cuts, cuts[1:])]
        start += count
    return runs


def _classes(counts: list[int], like: Tensor) -> Tensor:
    """The class of each anchor, as floating point: comparing these into floating-point masks is several times faster
    on CPUs."""
    return torch.arange(len(counts), dtype=like.dtype).repeat_interleave(torch.tensor(counts)).to(like.device)


class _Bands(torch.autograd.Function):
    """From one set to another, or within one that is small (zb is None)."""

    @staticmethod
    def forward(ctx, za, zb, counts_a, counts_b, temperature):
        within = zb is None
        zb = za if within else zb
        ctx.temperature = temperature
        grad_a = torch.zeros_like(za) if ctx.needs_input_grad[0] else None
        grad_b = grad_a if within else torch.zeros_like(zb) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(grad_a, None if within else grad_b)
        loss = za.new_zeros(())
        if not len(za) or not len(zb):
            return loss

        most = max(1, min(_tiling(za).band_rows, _tiling(za).band_scores // len(zb)))
        class_a, class_b = _classes(counts_a, za), _classes(counts_b, zb)
        ends = list(accumulate(counts_b, initial=0))
        buffer = za.new_empty(min(most, len(za)), len(zb))
        for r in _cut(counts_a, _RunLength(most, most)):
            z = za[r.span]
            block = slice(ends[r.first], ends[r.last + 1])  # the only columns that may hold positives
            e = buffer[: len(z)].addmm_(z, zb.t(), beta=0, alpha=1 / temperature)
            x = e[:, block].clone()
            positive = torch.eq(class_a[r.span, None], class_b[block]).to(za.dtype)
            e.exp_()[:, block].mul_(1 - positive)
            if within:
                positive.diagonal(r.start - block.start).zero_()

            n = e.sum(1)
            w = 1 / (positive.sum(1).clamp(min=1) * len(za))
            x = torch.sub(n.log()[:, None], x, out=x)
            pull = x.sigmoid().mul_(positive)  # n_i / (exp(s_ij) + n_i)
            loss += _softplus_(x).mul_(positive).sum(1) @ w

            # The gradient of the scores: g_i times e of negatives and - pull n_i / ratio_i of positives.
            ratio = pull.sum(1)
            e[:, block].addcmul_(pull, torch.where(ratio > 0, n / ratio, 0)[:, None], value=-1)
            g = torch.where(n > 0, ratio * w / n, 0)[:, None]
            if grad_a is not None:
                grad_a[r.span].addcmul_(e @ zb, g)
            if grad_b is not None:
                grad_b.addmm_(e.t(), z * g)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = (None if g is None else g * (grad / ctx.temperature) for g in ctx.saved_tensors)
        return *grads, None, None, None


class _SymmetricTiles(torch.autograd.Function):
    """Within one set."""

    @staticmethod
    def forward(ctx, z, counts, temperature):
        scores = _Scores(z, counts, temperature)
        n = z.new_zeros(len(z))
        for r, c, e in scores.negatives():
            n[r.span] += e.sum(1)
            if r != c:
                n[c.span] += e.sum(0)

        log_n = n.log()
        loss, ratio, count = torch.zeros_like(n), torch.zeros_like(n), torch.zeros_like(n)
        for r, _, s, positive in scores.positives():
            x = torch.sub(log_n[r.span, None], s, out=s)
            count[r.span] += positive.sum(1)
            ratio[r.span] += x.sigmoid().mul_(positive).sum(1)  # n_i / (exp(s_ij) + n_i)
            loss[r.span] += _softplus_(x).mul_(positive).sum(1)
        w = 1 / (count.clamp(min=1) * len(z))
        g = torch.where(n > 0, ratio * w / n, 0)
        ctx.counts, ctx.temperature = counts, temperature
        ctx.save_for_backward(z, log_n, g, w)
        return (loss * w).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        z, log_n, g, w = ctx.saved_tensors
        scores = _Scores(z, ctx.counts, ctx.temperature)
        grad = torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for r, c, e in scores.negatives():
                push = e.mul_(scores.outer_sum(r, c, g))
                grad[r.span].addmm_(push, z[c.span])
                if r != c:
                    grad[c.span].addmm_(push.t(), z[r.span])
            for r, c, s, positive in scores.positives():
                pull = torch.sub(log_n[r.span, None], s).sigmoid_().mul_(w[r.span, None])
                pull += torch.sub(log_n[c.span], s, out=s).sigmoid_().mul_(w[c.span])
                grad[r.span].addmm_(pull.mul_(positive), z[c.span], alpha=-1)
        return grad.mul_(grad_loss / ctx.temperature), None, None


class _Scores:
    """The scores within a set sorted by class, computed tile by tile in one buffer."""

    def __init__(self, z: Tensor, counts: list[int], temperature: float):
        self.z = z
        self.temperature = temperature
        self._class = _classes(counts, z)
        self._negatives, self._positives = _cut(counts, _tiling(z).negatives), _cut(counts, _tiling(z).positives)
        side = max(r.stop - r.start for r in self._negatives + self._positives)
        self._buffer, self._spare = z.new_empty(2, side * side)

    def negatives(self) -> Iterator[tuple[_Run, _Run, Tensor]]:
        """Yield rows, columns, and exp of the scores of negatives, 0 elsewhere, for each tile that holds some.

        They may be overwritten by the caller. Tiles below the diagonal are left out.
        """
        for i, r in enumerate(self._negatives):
            for c in self._negatives[i:]:
                if r.first == r.last == c.first == c.last:
                    continue
                e = self._tile(r, c).exp_()
                if self._share_a_class(r, c):
                    e.mul_(self._compare(torch.ne, r, c))
                yield r, c, e

    def positives(self) -> Iterator[tuple[_Run, _Run, Tensor, Tensor]]:
        """Yield rows, columns, scores, and 1 for positives, 0 elsewhere, for each tile that may hold some.

        Scores may be overwritten by the caller. Tiles below the diagonal are not left out.
        """
        for r in self._positives:
            for c in self._positives:
                if self._share_a_class(r, c):
                    positive = self._compare(torch.eq, r, c)
                    if r == c:
                        positive.fill_diagonal_(0)
                    yield r, c, self._tile(r, c), positive

    def outer_sum(self, r: _Run, c: _Run, values: Tensor) -> Tensor:
        """values_i + values_j for the rows i and columns j of a tile."""
        return torch.add(values[r.span, None], values[c.span], out=self._view(self._spare, r, c))

    def _tile(self, r: _Run, c: _Run) -> Tensor:
        tile = self._view(self._buffer, r, c)
        return tile.addmm_(self.z[r.span], self.z[c.span].t(), beta=0, alpha=1 / self.temperature)

    def _share_a_class(self, r: _Run, c: _Run) -> bool:
        return r.first <= c.last and c.first <= r.last

    def _compare(self, relation: Callable[..., Tensor], r: _Run, c: _Run) -> Tensor:
        return relation(self._class[r.span, None], self._class[c.span], out=self._view(self._spare, r, c))

    @staticmethod
    def _view(buffer: Tensor, r: _Run, c: _Run) -> Tensor:
        height, width = r.stop - r.start, c.stop - c.start
        return buffer[: height * width].view(height, width)


def _softplus_(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to full relative precision, in place.

    max(x, 0) + 2 atanh(v / (v + 2)) with v = exp(-|x|); log1p takes ten times as long on some CPUs.
    """
    v = x.abs().neg_().exp_()
    return x.clamp_(min=0).add_(v.div_(v + 2).atanh_(), alpha=2)

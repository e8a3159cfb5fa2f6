"""How the gradients of the contrastive losses join those of the segmentation, at the maps that both read.

Both are known there before they reach the backbone, which costs no further pass: each side gets a copy of the maps, and
the backward pass meets the gradients of both copies at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .eager import eager

__all__ = ["GradientBalance"]


class GradientBalance:
    """g_seg + s g_contrast in the place of the sum of both, over all shared maps as one vector.

    With a share rho, s = rho |g_seg| / |g_contrast|. The weights of the losses then only set the balance among the
    contrastive terms, and how fast projectors learn. A scale of the loss, as of mixed precision, cancels out.
    Each process balances its own gradients before they are averaged.

    Attributes:
        measure: measure norms and cosine in the next backward pass, which sets this to False.
    """

    def __init__(self, share: float = 0.0, remove_conflict: bool = False):
        """
        Args:
            share: rho; 0 leaves the gradient of the contrastive losses at their weights, s = 1.
            remove_conflict: where both point against each other, leave out the part of g_contrast along g_seg first (as
                in PCGrad, Yu et al., NeurIPS 2020, on the contrastive side only).

        Raises:
            ValueError: share is below 0.
        """
        if not share >= 0:
            raise ValueError(f"share must be at least 0, got {share}")
        self.share = share
        self.remove_conflict = remove_conflict
        self.measure = False
        self._measured: dict[str, Tensor] = {}

    @eager
    def split(
        self, maps: Mapping[str, Tensor], names: Iterable[str], factor: float = 1.0
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of maps for the segmentation and for the contrastive losses.

        Args:
            maps: by name.
            names: of those that both read, and whose gradients are joined.
            factor: on the share in this step, as of a warm-up.
        """
        names = list(names)
        copies: tuple[Tensor, ...] = _Split.apply(self, factor, *(maps[name] for name in names))
        segmentation, contrast = (dict(zip(names, part)) for part in (copies[: len(names)], copies[len(names) :]))
        return {**maps, **segmentation}, {**maps, **contrast}

    def join(
        self, segmentation: Sequence[Tensor | None], contrast: Sequence[Tensor | None], factor: float = 1.0
    ) -> list[Tensor | None]:
        """The gradients of the shared maps, from those of both copies; None stands for zeros."""
        if self.measure:
            norms, product = (_norm(segmentation), _norm(contrast)), _product(segmentation, contrast)
            self._measured = {
                "segmentation_norm": norms[0],
                "contrast_norm": norms[1],
                "ratio": norms[1] / norms[0],
                "cosine": product / (norms[0] * norms[1]),
            }
            self.measure = False
        if self.remove_conflict:
            square = _norm(segmentation).square()
            along = torch.where(square > 0, _product(segmentation, contrast).clamp(max=0) / square, 0)
            contrast = [_add(c, s, -along) for s, c in zip(segmentation, contrast)]
        if not self.share:
            return [_add(s, c) for s, c in zip(segmentation, contrast)]
        norm = _norm(contrast)
        scale = torch.where(norm > 0, factor * self.share * _norm(segmentation) / norm, 0)
        return [_add(s, c, scale) for s, c in zip(segmentation, contrast)]

    def take_measured(self) -> dict[str, float]:
        """The norms and the cosine of the last measured backward pass. Each comes once; {} if there is no new one.

        Returns:
            "segmentation_norm", "contrast_norm", "ratio" of the second to the first, and "cosine" of both gradients, as
            they come to the maps: by the losses with their weights, and with the scale of the loss that mixed precision
            or the accumulation of gradients sets, from which ratio and cosine are free. Not those that are undefined.
        """
        measured, self._measured = {name: float(value) for name, value in self._measured.items()}, {}
        return {name: value for name, value in measured.items() if value == value}


class _Split(torch.autograd.Function):
    """Two copies of each map; their gradients meet in the backward pass."""

    @staticmethod
    def forward(ctx: Any, balance: GradientBalance, factor: float, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.balance, ctx.factor = balance, factor
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in (*maps, *maps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        half = len(gradients) // 2
        return None, None, *ctx.balance.join(gradients[:half], gradients[half:], ctx.factor)


def _norm(vectors: Sequence[Tensor | None]) -> Tensor:
    """Of all tensors together, in float32 or better."""
    norms = [torch.linalg.vector_norm(x, dtype=_wide(x)) for x in vectors if x is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _product(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Tensor:
    products = [
        (a.to(_wide(a)) * b.to(_wide(b))).sum() for a, b in zip(first, second) if a is not None and b is not None
    ]
    return torch.stack(products).sum() if products else torch.zeros(())


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _add(x: Tensor | None, y: Tensor | None, factor: Tensor | None = None) -> Tensor | None:
    """The sum of x and factor times y. A tensor that is None stands for zeros; a factor that is None is 1."""
    if y is None:
        return x
    if factor is not None:
        y = y * factor.to(y.dtype)
    return y if x is None else x + y

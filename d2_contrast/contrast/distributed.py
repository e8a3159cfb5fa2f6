"""Anchors shared across the processes of a data-parallel training."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gather_rows", "world"]


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) if torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate rows over all processes, in the order of ranks, with gradients.

    The gradient assumes that every process goes on to compute the same value from the gathered rows, and that
    gradients of parameters are then averaged over processes, as DistributedDataParallel does. Each process therefore
    passes on its own part of the gradient times the number of processes; nothing is communicated in the backward pass.
    Rows in host memory are gathered by gloo, without waiting for a device.

    Args:
        rows: (counts[rank], ...).
        counts: number of rows of each process.

    Returns:
        (sum of counts, ...).
    """
    gathered: Tensor = _GatherRows.apply(rows, counts)
    return gathered


def _group_of(x: Tensor) -> Any:
    """The process group that can gather this tensor, None for the default group. NCCL cannot gather host tensors."""
    return _host_group(dist.group.WORLD) if x.device.type == "cpu" and dist.get_backend() == "nccl" else None


@lru_cache(maxsize=1)
def _host_group(_world: Any) -> Any:
    return dist.new_group(backend="gloo")


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        rank, ctx.world_size = world()
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        if ctx.world_size == 1:
            return rows.clone()
        most = max(counts)  # the backends gather equal shapes only
        padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, most - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=_group_of(padded))
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.own] * ctx.world_size, None

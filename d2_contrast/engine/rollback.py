"""Undoing what forward passes change in a network, for a step that is not completed."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from ..contrast.memory import ClassRings


class Rollback:
    """What is no parameter in a network, as it was at a mark: running statistics, other buffers, and memories.

    Memories, which may be large, are not copied: they keep what is overwritten.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._rings: list[ClassRings] = []
        self._kept: list[tuple[list[Tensor], Tensor]] = []

    def mark(self) -> None:
        """Keep the state of now. Buffers of one type are copied together, in few operations."""
        self._rings = [module for module in self.model.modules() if isinstance(module, ClassRings)]
        of_rings = {id(buffer) for rings in self._rings for buffer in rings.buffers()}
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        for buffer in self.model.buffers():
            if id(buffer) not in of_rings:
                alike[buffer.dtype, buffer.device].append(buffer)
        self._kept = [(buffers, torch.cat([b.reshape(-1) for b in buffers])) for buffers in alike.values()]
        for rings in self._rings:
            rings.mark()

    @torch.no_grad()
    def undo(self) -> None:
        """Go back to the last mark."""
        for buffers, values in self._kept:
            for buffer, part in zip(buffers, values.split([b.numel() for b in buffers])):
                buffer.copy_(part.view_as(buffer))
        for rings in self._rings:
            rings.rewind()

"""Balanced sampling of anchors from a map (Pissas et al., ECCV 2022, Sec. 3.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .anchor_set import AnchorSet
from .balance import choose_positions, share_out
from .device import to_device
from .distributed import gather_rows, world
from .eager import eager

__all__ = ["AnchorSampler", "Draw", "resize_labels", "tap"]

Unit = Literal["class", "image_class"]


class Draw(NamedTuple):
    """Which positions of a map become anchors; tensors in host memory.

    Attributes:
        positions: (a,), those of this process's map, as indices of the flattened (N, h, w) grid.
        labels: (A,), the classes of all anchors, sorted; A is a, unless processes share their anchors.
        counts: how many anchors each process gives, if they share them.
        order: (A,), where each anchor is among those of all processes, rank after rank, if they share them.
    """

    positions: Tensor
    labels: Tensor
    counts: Sequence[int] = ()
    order: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AnchorSampler:
    """Draws equally many anchors from each group, uniformly at random: options, their checks, and the drawing.

    With the unit "class" (the paper) a group is a class in the batch. K is the size of the smallest group; every class
    gives K anchors, divided as equally as possible among the images in which it occurs; an image that has fewer gives
    all of them and the others make up the rest. With "image_class" (the released code) a group is a class in one image.
    V is the size of the smallest group, and every group gives V anchors.

    Labels below 0 are left out like the ignore label.

    Args:
        unit: what a group is, "class" or "image_class".
        max_anchors: upper bound on the number of anchors; K or V is lowered to keep it.
        max_per_group: upper bound on K or V; 0 for no bound but max_anchors.
        min_per_group: groups with fewer positions are left out.
        ignore_label: label of positions that are never drawn.
        gather: draw from the batches of all processes as if they were one, and return the anchors of all to each (for
            the gradients see ``gather_rows``). The seed is drawn by the first process, from its generator.

    Raises:
        ValueError: an option is out of range.
    """

    unit: Unit = "class"
    max_anchors: int = 10_000
    max_per_group: int = 2500
    min_per_group: int = 5
    ignore_label: int = 255
    gather: bool = False

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit must be one of {get_args(Unit)}, got {self.unit!r}")
        for name, least in (("max_anchors", 1), ("max_per_group", 0), ("min_per_group", 1)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value}")
        if not isinstance(self.ignore_label, Integral):
            raise ValueError(f"ignore_label must be an integer, got {self.ignore_label}")

    @eager
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        project: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> AnchorSet:
        """Draw the anchors of a batch.

        Args:
            embeddings: (N, D, h, w), or (N, C, h, w) in front of project.
            labels: (N, H, W), integer class ids; brought to (h, w) by nearest neighbour.
            project: maps the vectors at the drawn positions, (A, C), to embeddings (A, D).
            generator: source of the random numbers, on any device; None takes the global one. On the CPU if gather.

        Returns:
            Anchors at unit length, in float32 or float64, sorted by class. There may be none.

        Raises:
            ValueError: shapes do not fit, or labels are not integers.
        """
        (draw,) = self.draw([embeddings], labels, generator)
        return self.take(embeddings, draw, project)

    @eager
    def draw(self, maps: Sequence[Tensor], labels: Tensor, generator: torch.Generator | None = None) -> list[Draw]:
        """The first half of a call, for several maps of a batch: draw positions, by labels alone.

        This runs on the host, while the device may still compute the maps. With labels in host memory nothing waits
        for the device.

        Args:
            maps: each (N, C, h, w), of which the shapes count.
            labels: see ``__call__``.
            generator: see ``__call__``; it is drawn from for one map after the other.

        Raises:
            ValueError: see ``__call__``.
        """
        for x in maps:
            if x.dim() != 4 or labels.dim() != 3 or not 0 < len(labels) == len(x):
                raise ValueError(
                    "embeddings must be (N, D, h, w) and labels (N, H, W) with the same N, "
                    f"got {tuple(x.shape)} and {tuple(labels.shape)}"
                )
        labels = labels.cpu()
        resized = [resize_labels(labels, x.shape[2:]) for x in maps]
        if self.gather:
            return self._draw_from_all(resized, generator)
        draws = []
        for of_map in resized:
            flat = of_map.flatten()
            chosen = self.choose(flat, [of_map[0].numel()] * len(of_map), generator)
            draws.append(Draw(chosen, flat[chosen]))
        return draws

    @eager
    def take(self, embeddings: Tensor, draw: Draw, project: Callable[[Tensor], Tensor] | None = None) -> AnchorSet:
        """The second half of a call: the anchors at the positions that were drawn."""
        return self.finish(tap(embeddings, draw)[1], draw, project)

    @eager
    def finish(self, vectors: Tensor, draw: Draw, project: Callable[[Tensor], Tensor] | None = None) -> AnchorSet:
        """The anchors of a draw, from the vectors (a, C) that :func:`tap` took out of the map."""
        if project is not None:
            vectors = project(vectors)
        vectors = F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=1)
        if draw.order is not None:
            vectors = gather_rows(vectors, draw.counts)[to_device(draw.order, vectors.device)]
        return AnchorSet(vectors, draw.labels)

    def choose(self, labels: Tensor, image_sizes: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Choose positions alone.

        Args:
            labels: (P,), integers below 2^31 / number of images, class of each position, image after image.
            image_sizes: number of positions of each image; P in all.
            generator: see ``__call__``.

        Returns:
            (A,), indices of the chosen positions, sorted by class.
        """
        return choose_positions(labels, image_sizes, self._quotas, self.ignore_label, generator)

    def _quotas(self, counts: Tensor) -> Tensor:
        """How many of the positions of each class in each image are drawn, both (classes, images)."""
        groups = counts.sum(1, keepdim=True) if self.unit == "class" else counts
        eligible = groups >= self.min_per_group
        num_groups = int(eligible.sum())
        if not num_groups:
            return torch.zeros_like(counts)
        quota = min(int(groups[eligible].min()), self.max_anchors // num_groups)
        if self.max_per_group:
            quota = min(quota, self.max_per_group)
        return share_out(counts * eligible, quota) if self.unit == "class" else eligible * quota

    def _draw_from_all(self, maps: Sequence[Tensor], generator: torch.Generator | None) -> list[Draw]:
        """Draw from the labels (N, h, w) of all processes, which they exchange once for all maps."""
        rank, world_size = world()
        seeds = [int(torch.randint(1 << 62, (), generator=generator)) for _ in maps]
        own = [len(maps[0]), *(x[0].numel() for x in maps), *seeds]
        shared = gather_rows(torch.tensor([own]), [1] * world_size).tolist()
        sizes = [[images * size for size in of_images[: len(maps)]] for images, *of_images in shared]
        everything = gather_rows(torch.cat([x.int().flatten() for x in maps]), [sum(of_maps) for of_maps in sizes])
        parts = everything.split([size for of_maps in sizes for size in of_maps])
        draws = []
        for i, counts in enumerate(zip(*sizes)):
            labels = torch.cat(parts[i :: len(maps)])
            image_sizes = [of_images[i] for images, *of_images in shared for _ in range(images)]
            chosen = self.choose(labels, image_sizes, torch.Generator().manual_seed(shared[0][1 + len(maps) + i]))
            ends = list(accumulate(counts))
            owner = torch.bucketize(chosen, torch.tensor(ends), right=True)
            draws.append(
                Draw(
                    positions=chosen[owner == rank] - (ends[rank] - counts[rank]),
                    labels=labels[chosen].long(),
                    counts=owner.bincount(minlength=world_size).tolist(),
                    order=owner.argsort(stable=True).argsort(),
                )
            )
        return draws


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Bring labels (N, H, W) to a size (h, w) by nearest neighbour; int64, a copy.

    Raises:
        ValueError: labels are not integers.
    """
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    height, width = size
    rows = torch.arange(height, device=labels.device) * labels.shape[1] // height
    cols = torch.arange(width, device=labels.device) * labels.shape[2] // width
    return labels[:, rows[:, None], cols].long()


@eager
def tap(maps: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Pass a map on, and take the vectors at the drawn positions out of it.

    Whatever else reads the map should read the one that is passed on. The gradient of the vectors then joins that of
    the map where both exist, and never takes the room of a map itself.

    Args:
        maps: (N, C, h, w).
        draw: of ``AnchorSampler.draw``.

    Returns:
        The same map, and vectors (a, C).
    """
    return _Tap.apply(maps, to_device(draw.positions, maps.device))


class _Tap(torch.autograd.Function):
    """See tap; positions are indices of the flattened (N, h, w) grid, none of which occurs twice.

    The vectors are taken without copying the map, wherever its channels lie, and the gradient has the map's memory
    format.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.maps = torch.empty_like(maps, device="meta")  # its layout alone: the values need not be kept
        height, width = maps.shape[2:]
        rows = positions // width
        index = rows // height, rows % height, positions % width
        ctx.save_for_backward(*index)
        channels_last = maps.permute(0, 2, 3, 1)
        if channels_last.is_contiguous():  # as maps of projectors are: several times faster
            vectors = channels_last.flatten(0, 2).index_select(0, positions)
        else:
            vectors = channels_last[index]
        return maps.detach(), vectors  # not a view, so that readers may change it in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_map: Tensor | None, of_vectors: Tensor | None) -> tuple[Tensor | None, None]:
        if of_vectors is None:
            return of_map, None
        if of_map is None:
            grad = torch.zeros_like(ctx.maps, device=of_vectors.device)
            grad.permute(0, 2, 3, 1)[ctx.saved_tensors] = of_vectors
        else:
            grad = torch.empty_like(ctx.maps, device=of_map.device).copy_(of_map)  # others may hold the same tensor
            grad.permute(0, 2, 3, 1)[ctx.saved_tensors] += of_vectors
        return grad, None

"""Memories: the methods that the paper compares with contrast anchors with vectors of earlier batches.

``MinedMemory`` is the pixel and region memory of Wang et al. (ICCV 2021), ``AverageMemory`` the region memory of Hu
et al. (ICCV 2021). Both keep vectors in rings, one for each class, which are buffers: checkpoints hold them. All
processes store what any of them has seen, in the order of ranks, so that their rings are equal. A batch is contrasted
with the vectors of the batches before it, and stored afterwards.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .anchor_set import AnchorSet
from .balance import choose_positions
from .device import to_device
from .distributed import gather_rows, world
from .info_nce import info_nce
from .precision import float32_product
from .sampler import AnchorSampler, resize_labels

__all__ = ["AverageMemory", "ClassRings", "ContrastMemory", "MinedMemory"]

Project = Callable[[Tensor], Tensor]
Kind = Literal["pixels", "regions"]

# Where the head is sure of each pixel of a region, the region has its plain mean.
_LEAST_DOUBT = 1e-6


class ClassRings(nn.Module):
    """The newest vectors of each class, up to a number; the oldest are overwritten first.

    Attributes:
        vectors: (classes, size, D); slots that are not filled hold zeros and are never read.
        stored: (classes,), how many vectors of a class have been stored in all.
    """

    vectors: Tensor
    stored: Tensor

    def __init__(self, num_classes: int, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_classes, size, dim))
        self.register_buffer("stored", torch.zeros(num_classes, dtype=torch.long))
        self._overwritten: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    @torch.no_grad()
    def store(self, entries: AnchorSet) -> None:
        """Store the vectors of all processes in the order of ranks; all processes have to call this."""
        own_labels = to_device(entries.labels, self.stored.device)  # the host may have them
        vectors, labels = _gather(AnchorSet(entries.vectors, own_labels))
        num_classes, size, _ = self.vectors.shape
        order = labels.argsort(stable=True)
        vectors, labels = vectors[order], labels[order]
        counts = labels.bincount(minlength=num_classes)
        turn = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels]
        last = turn >= counts[labels] - size  # if more come than fit, only the last are written
        vectors, labels, turn = vectors[last], labels[last], turn[last]
        slots = (self.stored[labels] + turn) % size
        if self._overwritten is not None:
            self._overwritten.append((labels, slots, self.vectors[labels, slots], counts))
        self.vectors[labels, slots] = vectors.to(self.vectors.dtype)
        self.stored += counts

    def mark(self) -> None:
        """From now on keep what is overwritten, so that ``rewind`` can put it back."""
        self._overwritten = []

    @torch.no_grad()
    def rewind(self) -> None:
        """Undo all that was stored since the last ``mark``, and keep nothing from then on."""
        while self._overwritten:
            labels, slots, vectors, counts = self._overwritten.pop()
            self.vectors[labels, slots] = vectors
            self.stored -= counts
        self._overwritten = None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Checkpointers drop tensors of another shape, and would leave the count of vectors that are not there.
        names = [f"{prefix}{name}" for name in ("vectors", "stored")]
        if not all(name in state_dict for name in names):
            for name in names:
                state_dict.pop(name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def content(self) -> AnchorSet:
        """A copy of all that is stored, sorted by class."""
        slots = torch.arange(self.vectors.shape[1], device=self.stored.device)
        filled = slots < self.stored[:, None]
        return AnchorSet(self.vectors[filled], filled.nonzero()[:, 0])


class ContrastMemory(nn.Module, ABC):
    """A memory of one scale, in the place of the contrast within a batch.

    ``draw`` makes the anchors of a batch, ``contrast`` their loss. In training mode the latter also stores what the
    batch adds.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes

    @abstractmethod
    def draw(
        self, maps: Tensor, labels: Tensor, sampler: AnchorSampler, project: Project | None, logits: Tensor | None
    ) -> AnchorSet:
        """Make the anchors of a batch, and note the vectors of it that ``contrast`` will store.

        Args:
            maps: (N, D, h, w), or (N, C, h, w) in front of project.
            labels: (N, H, W), integer class ids.
            sampler: of the criterion.
            project: maps vectors (..., C) to embeddings (..., D), one by one.
            logits: (N, K, H', W'), of the segmentation.

        Raises:
            ValueError: there are no logits, or they do not fit.
        """

    @abstractmethod
    def contrast(self, anchors: AnchorSet, temperature: float, *, tf32: bool = False) -> Tensor:
        """The loss of anchors against the stored vectors, 0 while there are none; then store what ``draw`` noted.

        The terms are those of ``supervised_info_nce``, with positives and negatives from the memory alone.
        ``tf32`` is that of ``MultiScaleContrast``.
        """

    def _predict(self, logits: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted class at each position of labels (N, h, w), and 1 minus its probability, both (N, h, w)."""
        if logits is None:
            raise ValueError("logits of the segmentation are needed for a memory, got None")
        if logits.dim() != 4 or logits.shape[:2] != (len(labels), self.num_classes):
            raise ValueError(
                f"logits must be ({len(labels)}, {self.num_classes}, H, W), images and classes of the memory, got "
                f"{tuple(logits.shape)}"
            )
        size = labels.shape[1:]
        logits = logits.detach().float()
        if list(logits.shape[2:]) != list(size):
            logits = F.interpolate(logits, list(size), mode="bilinear", align_corners=False)
        log_probabilities, classes = logits.log_softmax(1).max(1)
        return classes, -log_probabilities.expm1()

    def _members(self, labels: Tensor, ignore_label: int) -> Tensor:
        """Labels (N, h, w) to masks (N, classes, h w) in float32."""
        valid = (labels >= 0) & (labels != ignore_label)
        one_hot = F.one_hot(labels.masked_fill(~valid, 0), self.num_classes) * valid[..., None]
        return one_hot.movedim(3, 1).flatten(2).float()


class MinedMemory(ContrastMemory):
    """The memory of Wang et al.: pixels, and means of regions, of which each anchor meets the hardest.

    Half of the anchors of a class are pixels that the segmentation gets wrong, half pixels that it gets right: to the
    sampler each half is a group of its own, with its limits. An anchor's positives are drawn from the share of them
    that is farthest from it, its negatives from the share that is nearest. Of every image a few random pixels of each
    class are stored, and the mean of the embeddings of all of them.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        sizes: dict[Kind, int],
        *,
        positives: int = 1024,
        negatives: int = 2048,
        hardest: float = 0.1,
        pixels_per_image: int = 10,
    ):
        """
        Args:
            num_classes: labels are below this number.
            dim: D of the embeddings.
            sizes: vectors of each class that are kept, of "pixels", "regions" or both. The paper keeps ten pixels and
                one region for each training image.
            positives: largest number of positives that are drawn for an anchor.
            negatives: the same for negatives.
            hardest: share of the candidates, the hardest ones, from which both are drawn.
            pixels_per_image: largest number of pixels of a class in an image that are stored.

        Raises:
            ValueError: a kind is unknown, or a number is out of range.
        """
        super().__init__(num_classes)
        if not sizes or not set(sizes) <= set(get_args(Kind)):
            raise ValueError(f"memory must keep one or more of {get_args(Kind)}, got {list(sizes)}")
        numbers = {"positives": positives, "negatives": negatives, "pixels_per_image": pixels_per_image}
        for name, number in (*sizes.items(), *numbers.items()):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 < hardest <= 1:
            raise ValueError(f"hardest must be a share above 0 and up to 1, got {hardest}")
        self.rings = nn.ModuleDict({kind: ClassRings(num_classes, size, dim) for kind, size in sizes.items()})
        self.positives = positives
        self.negatives = negatives
        self.hardest = hardest
        self.pixels_per_image = pixels_per_image
        self._seen: dict[str, AnchorSet] = {}

    def draw(
        self, maps: Tensor, labels: Tensor, sampler: AnchorSampler, project: Project | None, logits: Tensor | None
    ) -> AnchorSet:
        labels = resize_labels(labels, maps.shape[2:])
        self._seen = self._entries(maps.detach(), labels, sampler.ignore_label, project)
        predicted, _ = self._predict(logits, labels)
        is_class = (labels >= 0) & (labels != sampler.ignore_label)
        offset = max(self.num_classes, sampler.ignore_label + 1)
        anchors = sampler(maps, labels + offset * (is_class & (labels != predicted)), project)
        classes, order = (anchors.labels % offset).sort(stable=True)
        return AnchorSet(anchors.vectors[to_device(order, anchors.vectors.device)], classes)

    def contrast(self, anchors: AnchorSet, temperature: float, *, tf32: bool = False) -> Tensor:
        with torch.autocast(anchors.vectors.device.type, enabled=False):
            loss = self._contrast(anchors, temperature, tf32)
        if self.training:
            for kind, entries in self._seen.items():
                cast(ClassRings, self.rings[kind]).store(entries)
        self._seen = {}
        return loss

    def _contrast(self, anchors: AnchorSet, temperature: float, tf32: bool) -> Tensor:
        contents = [cast(ClassRings, rings).content() for rings in self.rings.values()]
        vectors = anchors.vectors
        stored = torch.cat([content.vectors for content in contents]).to(vectors.dtype)
        labels = torch.cat([content.labels for content in contents])
        loss = vectors.sum() * 0.0
        classes, counts = anchors.labels.cpu().unique_consecutive(return_counts=True)
        if not len(stored):
            return loss
        for label, own in zip(classes.tolist(), vectors.split(counts.tolist())):
            scores = float32_product(own, stored.t(), tf32) / temperature
            is_positive = labels == label
            positives = self._draw_hardest(-scores.detach(), is_positive.nonzero()[:, 0], self.positives)
            negatives = self._draw_hardest(scores.detach(), (~is_positive).nonzero()[:, 0], self.negatives)
            if positives.shape[1] and negatives.shape[1]:
                excess = scores.gather(1, negatives).logsumexp(1, keepdim=True) - scores.gather(1, positives)
                loss = loss + F.softplus(excess).mean(1).sum()
        return loss / max(1, len(vectors))

    def _draw_hardest(self, hardness: Tensor, candidates: Tensor, count: int) -> Tensor:
        """For each row of (A, M), draw up to count of its hardest candidates (B,): columns (A, up to count)."""
        pool = min(len(candidates), max(1, round(self.hardest * len(candidates))))
        chosen = hardness[:, candidates].topk(pool, sorted=False).indices
        if pool > count:
            chosen = chosen.gather(1, torch.rand(chosen.shape, device=chosen.device).topk(count, sorted=False).indices)
        return candidates[chosen]

    @torch.no_grad()
    def _entries(
        self, maps: Tensor, labels: Tensor, ignore_label: int, project: Project | None
    ) -> dict[str, AnchorSet]:
        """What a batch adds to each ring."""
        project = project or nn.Identity()
        positions = maps.permute(0, 2, 3, 1).flatten(0, 2)
        entries = {}
        if "pixels" in self.rings:
            quotas = partial(torch.clamp, max=self.pixels_per_image)
            images, pixels = labels.flatten(1).shape
            chosen = to_device(
                choose_positions(labels.flatten(), [pixels] * images, quotas, ignore_label), positions.device
            )
            entries["pixels"] = AnchorSet(_normalise(project(positions[chosen])), labels.flatten()[chosen])
        if "regions" in self.rings:
            units = _normalise(project(positions)).unflatten(0, (len(maps), -1))
            entries["regions"] = _average(units, self._members(labels, ignore_label))
        return entries


class AverageMemory(ContrastMemory):
    """The memory of Hu et al.: an anchor is the mean vector of a class in an image, and so is each stored vector.

    A pixel that the segmentation gets right has the weight 1 minus the predicted probability of its class in that mean,
    a pixel that it gets wrong has the weight 1. The loss is ``supervised_info_nce`` from the anchors to all stored
    vectors.
    """

    def __init__(self, num_classes: int, dim: int, size: int):
        """
        Args:
            num_classes: labels are below this number.
            dim: D of the embeddings.
            size: vectors of each class that are kept. The paper keeps one for each training image.

        Raises:
            ValueError: the size is out of range.
        """
        super().__init__(num_classes)
        if size < 1:
            raise ValueError(f"regions must be at least 1, got {size}")
        self.rings = ClassRings(num_classes, size, dim)
        self._is_new = False

    def draw(
        self, maps: Tensor, labels: Tensor, sampler: AnchorSampler, project: Project | None, logits: Tensor | None
    ) -> AnchorSet:
        self._is_new = True
        labels = resize_labels(labels, maps.shape[2:])
        predicted, doubt = self._predict(logits, labels)
        weights = torch.where(predicted == labels, doubt, 1.0).clamp(min=_LEAST_DOUBT)
        members = self._members(labels, sampler.ignore_label) * weights.flatten(1)[:, None]
        with torch.autocast(maps.device.type, enabled=False):
            positions = maps.flatten(2).transpose(1, 2)
            positions = positions if positions.dtype == torch.float64 else positions.float()
        # The projection of a weighted mean is the weighted mean of the projections.
        return _average(positions, members, project and (lambda means: project(means.to(maps.dtype))))

    def contrast(self, anchors: AnchorSet, temperature: float, *, tf32: bool = False) -> Tensor:
        loss = info_nce(anchors, self.rings.content(), temperature, tf32=tf32)
        if self.training and self._is_new:
            self.rings.store(anchors)
        self._is_new = False
        return loss


def _average(positions: Tensor, members: Tensor, project: Project | None = None) -> AnchorSet:
    """The weighted mean of each class in each image, projected and at unit length, sorted by class, then by image.

    Args:
        positions: (N, P, C), vectors of the positions of each image.
        members: (N, classes, P), weights; those of a position are 0 except for its class.
        project: maps means (G, C) to embeddings (G, D).
    """
    with torch.autocast(positions.device.type, enabled=False):
        totals = float32_product(members.to(positions.dtype), positions)
    weights = members.sum(2)
    labels, images = weights.t().nonzero(as_tuple=True)
    means = totals[images, labels] / weights[images, labels, None]
    return AnchorSet(_normalise(means if project is None else project(means)), labels)


def _normalise(vectors: Tensor) -> Tensor:
    return F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)


def _gather(entries: AnchorSet) -> AnchorSet:
    """The entries of all processes, in the order of ranks."""
    _, world_size = world()
    if world_size == 1:
        return entries
    vectors, labels = entries
    counts = gather_rows(torch.tensor([len(labels)], device=labels.device), [1] * world_size).tolist()
    return AnchorSet(gather_rows(vectors, counts), gather_rows(labels, counts))

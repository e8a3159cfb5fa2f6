"""Balanced sampling of anchors from dense embeddings (Pissas et al., ECCV 2022, Sec. 3.3)."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import gather_rows, world

__all__ = ["SAMPLERS", "choose_positions", "resize_labels", "sample_anchors", "share_out", "take_anchors"]

SAMPLERS = ("class", "image_class")

# Positions are sorted by class and image in 32 bits: half the memory of 64 takes two thirds of the time.
_IGNORED = torch.iinfo(torch.int32).max


@torch.compiler.disable
def sample_anchors(
    embeddings: Tensor,
    labels: Tensor,
    sampler: str = "class",
    max_anchors: int = 10000,
    min_per_class: int = 5,
    max_per_class: int | None = None,
    ignore_label: int = 255,
    generator: torch.Generator | None = None,
    gather: bool = False,
    last_layer: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a class-balanced set of anchors from a batch of embeddings.

    Args:
        embeddings: (N, D, h, w), or (N, C', h, w) in front of the last layer.
        labels: (N, H, W), integer class ids; brought to (h, w) by nearest neighbour.
        sampler, max_anchors, min_per_class, max_per_class, ignore_label, generator: see `choose_positions`.
        gather: draw from the batches of all processes as if they were one, and return the anchors of all to each (for
            the gradients see `gather_rows`). The seed is drawn from the generator, on the CPU, by the first process.
        last_layer: the last layer of the projector, (A, C') to (A, D), where only the drawn positions are to pass it.

    Returns:
        Unit-length anchors (A, D) in float32 or better, sorted by class, and their labels (A,). A may be 0.

    Raises:
        ValueError: on shapes that do not fit or an unknown sampler.
    """
    labels = resize_labels(embeddings, labels)
    image_sizes = [labels[0].numel()] * len(labels)
    labels = labels.flatten()
    offsets = [0, len(labels)]
    if gather:
        labels, image_sizes, offsets, generator = _share_labels(labels, image_sizes, generator)
    chosen = choose_positions(
        labels, image_sizes, sampler, max_anchors, min_per_class, max_per_class, ignore_label, generator
    )
    if gather:
        return _take_shared_anchors(embeddings, chosen, offsets, last_layer), labels[chosen]
    return take_anchors(embeddings, chosen, last_layer), labels[chosen]


def _share_labels(
    labels: Tensor, image_sizes: list[int], generator: torch.Generator | None
) -> tuple[Tensor, list[int], list[int], torch.Generator]:
    """Labels and image sizes of all processes, where those of each begin, and a generator common to them."""
    seed = torch.randint(1 << 62, (), generator=generator).item()
    mine = torch.tensor([len(image_sizes), image_sizes[0], seed], device=labels.device)
    shared = gather_rows(mine[None], [1] * world()[1]).tolist()
    image_sizes = [size for images, size, _ in shared for _ in range(images)]
    counts = [images * size for images, size, _ in shared]
    generator = torch.Generator().manual_seed(shared[0][2])
    return gather_rows(labels, counts), image_sizes, [0, *accumulate(counts)], generator


def _take_shared_anchors(
    embeddings: Tensor, chosen: Tensor, offsets: list[int], last_layer: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Anchors of all processes, each of which takes its own from its embeddings."""
    rank, world_size = world()
    owner = torch.bucketize(chosen, torch.tensor(offsets[1:], device=chosen.device), right=True)
    counts = owner.bincount(minlength=world_size).tolist()
    own = take_anchors(embeddings, chosen[owner == rank] - offsets[rank], last_layer)
    anchors = gather_rows(own, counts)
    return anchors[owner.argsort(stable=True).argsort()]  # from the order of ranks to that of chosen


def resize_labels(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Bring labels (N, H, W) to the size of embeddings (N, D, h, w) by nearest neighbour; int64."""
    if embeddings.dim() != 4 or labels.dim() != 3 or not 0 < len(labels) == len(embeddings):
        raise ValueError(
            "embeddings must be (N, D, h, w) and labels (N, H, W) with the same N, "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    height, width = embeddings.shape[2:]
    rows = torch.arange(height, device=labels.device) * labels.shape[1] // height
    cols = torch.arange(width, device=labels.device) * labels.shape[2] // width
    return labels[:, rows[:, None], cols].long()


def take_anchors(embeddings: Tensor, positions: Tensor, last_layer: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Unit-length embeddings (A, D), float32 or better, at positions (A,) of the flattened (N, h, w) grid."""
    # A view where channels come last, as those of projectors do.
    vectors = embeddings.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, positions)
    if last_layer is not None:
        vectors = last_layer(vectors)
    return F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=1)


def choose_positions(
    labels: Tensor,
    image_sizes: Sequence[int],
    sampler: str = "class",
    max_anchors: int = 10000,
    min_per_class: int = 5,
    max_per_class: int | None = None,
    ignore_label: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose equally many positions per class, or per class of an image, uniformly at random.

    "class" (the paper): K is the count of the rarest class in the batch; every class gives K positions, divided as
    equally as possible among the images in which it occurs; an image that has fewer gives all of them and the others
    make up the rest. "image_class" (the released code): V is the smallest count of a class in an image; every class
    of every image gives V.

    Args:
        labels: (P,), class of each position, below 2^31 / number of images; image after image.
        image_sizes: number of positions of each image; P in all.
        sampler: "class" or "image_class", the group whose size is K or V.
        max_anchors: upper bound on the number of chosen positions; K or V is lowered to keep it.
        min_per_class: groups with fewer positions are left out.
        max_per_class: upper bound on K or V; None for no other than that of max_anchors.
        ignore_label: positions with this label are never chosen.
        generator: source of the random numbers, on any device; None takes the global one.

    Returns:
        (A,), indices of the chosen positions, sorted by class.

    Raises:
        ValueError: on an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got {sampler!r}")
    size, num_images = len(labels), len(image_sizes)

    def shuffled(count: int) -> Tensor:
        device = labels.device if generator is None else generator.device
        return torch.randperm(count, generator=generator, device=device, dtype=torch.int32).to(labels.device)

    # Images in random order, so that none is preferred where a quota does not divide evenly; then positions in random
    # order, sorted by class and image: the first of a group are a random choice from it.
    sizes = torch.tensor(image_sizes).to(labels.device, non_blocking=True)
    codes = shuffled(num_images).repeat_interleave(sizes, output_size=size)
    codes.add_(labels.int(), alpha=num_images).masked_fill_(labels == ignore_label, _IGNORED)
    shuffle = shuffled(size)
    codes, order = codes.index_select(0, shuffle).sort()

    # The rest is small, and done on the host. Only .cpu() waits for the device.
    codes, counts = codes.cpu().unique_consecutive(return_counts=True)
    valid = codes != _IGNORED
    label, row = (codes[valid] // num_images).unique_consecutive(return_inverse=True)
    table = counts.new_zeros(len(label), num_images)
    table[row, codes[valid] % num_images] = counts[valid]

    groups = table.sum(1, keepdim=True) if sampler == "class" else table
    eligible = groups >= min_per_class
    num_groups = int(eligible.sum())
    if not num_groups:
        return order[:0]
    quota = min(int(groups[eligible].min()), max_anchors // num_groups)
    if max_per_class is not None:
        quota = min(quota, max_per_class)
    quotas = share_out(table * eligible, quota) if sampler == "class" else eligible * quota

    quotas, starts = quotas.flatten(), (table.flatten().cumsum(0) - table.flatten())
    within = torch.arange(int(quotas.sum())) - (quotas.cumsum(0) - quotas).repeat_interleave(quotas)
    index = (starts.repeat_interleave(quotas) + within).to(labels.device, non_blocking=True)
    return shuffle[order[index]].long()


def share_out(available: Tensor, total: int) -> Tensor:
    """Divide a total in each row as equally as possible, where no entry can give more than is available.

    With the water level t, entries give min(available, t) and t solves sum min(available, t) = total. For entries in
    ascending order a_1 .. a_N, sum min(a, t) = min_j (a_1 + .. + a_j + (N - j) t), hence t = max_j (total - a_1 - .. -
    a_j) / (N - j). What rounding t down leaves over goes to the first entries that have more, one each.

    Args:
        available: (rows, N), integers; a row of zeros gives nothing, any other must hold the total.

    Returns:
        (rows, N), the shares.
    """
    count = available.shape[1]
    ascending = available.sort(1).values
    before = ascending.cumsum(1) - ascending
    level = ((total - before) // torch.arange(count, 0, -1)).amax(1, keepdim=True)
    shares = torch.minimum(available, level)
    more = available > level
    left = total - shares.sum(1, keepdim=True)
    return shares + (more & (more.cumsum(1) <= left))

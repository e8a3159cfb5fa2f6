"""Which positions become anchors: random choices from counted groups, on indices alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["choose_positions", "share_out"]

# Sorted behind all classes.
_NO_CLASS = torch.iinfo(torch.int32).max


def choose_positions(
    labels: Tensor,
    image_sizes: Sequence[int],
    quotas: Callable[[Tensor], Tensor],
    ignore_label: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose positions uniformly at random, as many of each class of each image as quotas says.

    Args:
        labels: (P,), integers below 2^31 / number of images, class of each position, image after image.
        image_sizes: number of positions of each image; P in all.
        quotas: maps the numbers of positions of each class in each image, (classes, images), to those that are wanted,
            no more than there are. Classes without a position are not listed, and there may be none at all.
        ignore_label: label of positions that belong to no class; nor do labels below 0.
        generator: source of the random numbers, on any device; None takes the global one.

    Returns:
        (A,), indices of the chosen positions, sorted by class; in host memory.
    """
    labels, num_positions, num_images = labels.cpu(), len(labels), len(image_sizes)

    def shuffled(count: int) -> Tensor:
        device = "cpu" if generator is None else generator.device
        return torch.randperm(count, generator=generator, device=device, dtype=torch.int32).cpu()

    # Images in random order, so that none is preferred where a quota does not divide evenly; then positions in random
    # order, sorted by class and image: the first of a group are a random choice from it. In 32 bits, sorting takes two
    # thirds of the time that it takes in 64.
    codes = shuffled(num_images).repeat_interleave(torch.tensor(image_sizes), output_size=num_positions)
    codes.add_(labels.int(), alpha=num_images).masked_fill_((labels < 0) | (labels == ignore_label), _NO_CLASS)
    shuffle = shuffled(num_positions)
    codes, order = codes.index_select(0, shuffle).sort()

    codes, counts = torch.unique_consecutive(codes, return_counts=True)
    is_class = codes != _NO_CLASS
    codes, counts = codes[is_class], counts[is_class]
    classes, row = torch.unique_consecutive(codes // num_images, return_inverse=True)
    table = counts.new_zeros(len(classes), num_images)
    table[row, codes % num_images] = counts

    wanted, table = quotas(table).flatten(), table.flatten()
    starts = table.cumsum(0) - table
    within = torch.arange(int(wanted.sum())) - (wanted.cumsum(0) - wanted).repeat_interleave(wanted)
    index = starts.repeat_interleave(wanted) + within
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

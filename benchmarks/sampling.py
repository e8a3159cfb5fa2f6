"""Time of the anchor sampling beside a loop over classes.

python -m benchmarks.sampling [--images 16] [--size 128] [--classes 150]
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import machine, markdown, time_side_by_side
from d2_contrast.contrast.anchors import choose_positions

IGNORE = 255
MAX_ANCHORS = 10000
MIN_PER_CLASS = 5


def loop_over_classes(labels: Tensor) -> Tensor:
    """K positions of every class, shared out among images in turns, with Python loops over classes and images."""
    flat = labels.flatten()
    classes, counts = flat[flat != IGNORE].unique(return_counts=True)
    classes, counts = classes[counts >= MIN_PER_CLASS], counts[counts >= MIN_PER_CLASS]
    k = min(counts.min().item(), MAX_ANCHORS // len(classes))
    chosen = []
    for label in classes.tolist():
        pools = []
        for image in range(len(labels)):
            where = (labels[image].flatten() == label).nonzero().squeeze(1) + image * labels[0].numel()
            if len(where):
                pools.append(where[torch.randperm(len(where))])
        pools.sort(key=len)
        left = k
        for i, pool in enumerate(pools):
            share = min(len(pool), left // (len(pools) - i))
            chosen.append(pool[:share])
            left -= share
    return torch.cat(chosen)


def loop_over_pairs(labels: Tensor) -> Tensor:
    """V positions of every class of every image, with Python loops over images and classes."""
    pools = []
    for image in range(len(labels)):
        flat = labels[image].flatten()
        for label in flat.unique().tolist():
            if label == IGNORE:
                continue
            where = (flat == label).nonzero().squeeze(1)
            if len(where) >= MIN_PER_CLASS:
                pools.append(where[torch.randperm(len(where))] + image * flat.numel())
    v = min(min(len(pool) for pool in pools), MAX_ANCHORS // len(pools))
    return torch.cat([pool[:v] for pool in pools])


def make_labels(images: int, size: int, classes: int, cell: int = 4) -> Tensor:
    """Label maps of cells, each image with its own selection of classes, 5 % ignored."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(images, size // cell, size // cell, generator=generator).square()
    grid = (grid * classes / 3 + torch.arange(images)[:, None, None] * classes / images).long() % classes
    labels = grid.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = IGNORE
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="height and width of the label maps")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=9, help="interleaved rounds; the median counts")
    args = parser.parse_args()

    labels = make_labels(args.images, args.size, args.classes)
    flat, image_sizes = labels.flatten(), [args.size**2] * args.images
    loops: dict[str, Callable[[Tensor], Tensor]] = {"class": loop_over_classes, "image_class": loop_over_pairs}
    functions: dict[str, Callable[[], Tensor]] = {}
    for sampler, loop in loops.items():
        functions[f"{sampler}: d2_contrast"] = lambda sampler=sampler: choose_positions(
            flat, image_sizes, sampler, MAX_ANCHORS, MIN_PER_CLASS
        )
        functions[f"{sampler}: loop"] = lambda loop=loop: loop(labels)
    print(f"{machine()}\n\n{args.images} x {args.size} x {args.size} labels, {args.classes} classes:\n")
    seconds = time_side_by_side(functions, args.repeats)
    rows = []
    for name, function in functions.items():
        own = f"{name.split(':')[0]}: d2_contrast"
        rows.append([name, len(function()), seconds[name] * 1e3, seconds[name] / seconds[own]])
    print(markdown(["", "anchors", "ms", "times the time of d2_contrast"], rows))


if __name__ == "__main__":
    main()

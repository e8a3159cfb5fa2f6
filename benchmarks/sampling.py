"""Time and memory of the anchor sampling beside a loop over classes.

python -m benchmarks.sampling [--images 16] [--size 128] [--classes 150] [--sizes 32 64 ...] [--plot growth.png]
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import in_subprocess, machine, markdown, peak_memory_mb, plot_growth, time_side_by_side
from d2_contrast.contrast import AnchorSampler

IGNORE = 255
MAX_ANCHORS = 10000
MIN_PER_GROUP = 5


def loop_over_classes(labels: Tensor) -> Tensor:
    """K positions of every class, shared out among images in turns, with Python loops over classes and images."""
    flat = labels.flatten()
    classes, counts = flat[flat != IGNORE].unique(return_counts=True)
    classes, counts = classes[counts >= MIN_PER_GROUP], counts[counts >= MIN_PER_GROUP]
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
            if len(where) >= MIN_PER_GROUP:
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


SAMPLERS: dict[str, Callable[[Tensor], Tensor]] = {
    "class: d2_contrast": lambda labels: ours(labels, "class"),
    "class: loop": loop_over_classes,
    "image_class: d2_contrast": lambda labels: ours(labels, "image_class"),
    "image_class: loop": loop_over_pairs,
}


def ours(labels: Tensor, unit: str) -> Tensor:
    sampler = AnchorSampler(
        unit=unit, max_anchors=MAX_ANCHORS, max_per_group=0, min_per_group=MIN_PER_GROUP, ignore_label=IGNORE
    )
    return sampler.choose(labels.flatten(), [labels[0].numel()] * len(labels))


def time_all(labels: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of each sampler."""
    seconds = time_side_by_side({name: lambda f=f: f(labels) for name, f in SAMPLERS.items()}, repeats)
    return {name: s * 1e3 for name, s in seconds.items()}


def measure_memory(name: str, labels: Tensor) -> float:
    """Peak memory of one call beyond its labels, MB, in this fresh process."""
    SAMPLERS[name](labels[:, :16, :16])  # loads libraries and starts threads
    return peak_memory_mb(lambda: SAMPLERS[name](labels))


def compare(args: argparse.Namespace) -> str:
    """All samplers at one size."""
    labels = make_labels(args.images, args.size, args.classes)
    ms = time_all(labels, args.repeats)
    sizes = ("--images", args.images, "--size", args.size, "--classes", args.classes)
    rows = []
    for name, sampler in SAMPLERS.items():
        own = f"{name.split(':')[0]}: d2_contrast"
        (memory,) = in_subprocess("benchmarks.sampling", "--measure", name, *sizes)
        rows.append([name, len(sampler(labels)), ms[name], ms[name] / ms[own], memory])
    return markdown(["", "anchors", "ms", "times the time of d2_contrast", "MB"], rows)


def growth(args: argparse.Namespace) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Milliseconds over the height and width of the label maps."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in SAMPLERS}
    for size in args.sizes:
        for name, ms in time_all(make_labels(args.images, size, args.classes), args.repeats).items():
            points[name].append((size, ms))
    rows = [[size, *(points[name][i][1] for name in SAMPLERS)] for i, size in enumerate(args.sizes)]
    return markdown(["height and width", *SAMPLERS], rows), points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="height and width of the label maps")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=9, help="interleaved rounds; the median counts")
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 128, 256])
    parser.add_argument("--plot", metavar="PNG", help="also draw the time over the size of the label maps")
    parser.add_argument("--measure", choices=list(SAMPLERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure_memory(args.measure, make_labels(args.images, args.size, args.classes)))
        return
    print(f"{machine()}\n\n{args.images} x {args.size} x {args.size} labels, {args.classes} classes:\n", flush=True)
    print(compare(args), flush=True)
    if args.sizes:
        table, points = growth(args)
        print(f"\nGrowth with the size of the label maps, ms:\n\n{table}")
        if args.plot:
            plot_growth(args.plot, "height and width", {"ms": points})


if __name__ == "__main__":
    main()

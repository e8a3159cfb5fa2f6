"""Time and memory of supervised_info_nce, forward plus backward, beside other forms of the loss.

    python -m benchmarks.info_nce [--anchors 10000] [--sizes 1000 2000 ...] [--plot growth.png]

The unit is the time of four A x A x d matrix products into memory that is already there: scores, scores again for the
backward pass, and two gradients, which a plain tiled form needs. SupConLoss of pytorch-metric-learning has another
denominator: only its time and memory compare.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import in_subprocess, machine, markdown, peak_memory_mb, plot_growth, time_side_by_side
from d2_contrast.contrast import supervised_info_nce

TAU = 0.1


def textbook(za: Tensor, ya: Tensor, zb: Tensor | None = None, yb: Tensor | None = None) -> Tensor:
    """The loss as it is commonly written, with A x B matrices."""
    within = zb is None
    if within:
        zb, yb = za, ya
    scores = za @ zb.t() / TAU
    same = ya[:, None] == yb[None, :]
    log_n = scores.masked_fill(same, torch.finfo(scores.dtype).min).logsumexp(1, keepdim=True)
    positive = same & ~torch.eye(len(ya), dtype=torch.bool) if within else same
    terms = F.softplus(log_n - scores) * positive
    return (terms.sum(1) / positive.sum(1).clamp(min=1)).mean()


def supcon(za: Tensor, ya: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=TAU)(za, ya)


def ours(*sets: Tensor) -> Tensor:
    return supervised_info_nce(*sets, temperature=TAU)


LOSSES: dict[str, tuple[Callable[..., Tensor], bool]] = {
    # name: loss, whether it contrasts two sets
    "within a set: d2_contrast": (ours, False),
    "within a set: textbook": (textbook, False),
    "within a set: SupConLoss": (supcon, False),
    "across sets: d2_contrast": (ours, True),
    "across sets: textbook": (textbook, True),
}


def make_sets(anchors: int, dim: int, classes: int, across: bool) -> list[Tensor]:
    """One or two sets of unit vectors with gradients, and their sorted labels."""
    torch.manual_seed(0)
    labels = torch.arange(anchors) * classes // anchors
    vectors = [F.normalize(torch.randn(anchors, dim), dim=1).requires_grad_() for _ in range(1 + across)]
    return [x for z in vectors for x in (z, labels)]


def step(name: str, anchors: int, dim: int, classes: int) -> Callable[[], None]:
    """A function that runs a loss forward and backward."""
    loss, across = LOSSES[name]
    sets = make_sets(anchors, dim, classes, across)

    def run() -> None:
        for z in sets[::2]:
            z.grad = None
        loss(*sets).backward()

    return run


def matrix_products(anchors: int, dim: int) -> Callable[[], None]:
    """A function that runs the four products of the unit."""
    z, scores, grad = torch.randn(anchors, dim), torch.empty(anchors, anchors), torch.empty(anchors, dim)

    def run() -> None:
        torch.mm(z, z.t(), out=scores)
        torch.mm(z, z.t(), out=scores)
        torch.mm(scores, z, out=grad)
        torch.mm(scores.t(), z, out=grad)

    return run


def measure(name: str, anchors: int, dim: int, classes: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a step and its peak memory beyond inputs and gradients, MB, in this fresh process."""
    step(name, 500, dim, classes)()  # loads libraries and starts threads
    run = step(name, anchors, dim, classes)
    seconds: dict[str, float] = {}
    memory = peak_memory_mb(lambda: seconds.update(time_side_by_side({name: run}, repeats)))
    gradients = (1 + LOSSES[name][1]) * anchors * dim * 4 / 1e6
    return seconds[name], memory - gradients


def measure_in_subprocess(name: str, anchors: int, args: argparse.Namespace, repeats: int) -> tuple[float, float]:
    sizes = ("--anchors", anchors, "--dim", args.dim, "--classes", args.classes)
    seconds, memory = in_subprocess("benchmarks.info_nce", "--measure", name, *sizes, "--repeats", repeats)
    return seconds, memory


def compare(args: argparse.Namespace) -> str:
    """All forms at one size."""
    size = (args.anchors, args.dim, args.classes)
    functions = {"unit: 4 matrix products": matrix_products(args.anchors, args.dim)}
    functions |= {name: step(name, *size) for name in LOSSES}
    seconds = time_side_by_side(functions, args.repeats)
    unit = seconds["unit: 4 matrix products"]
    rows = []
    for name in functions:
        own = f"{name.split(':')[0]}: d2_contrast"
        memory = measure_in_subprocess(name, args.anchors, args, 1)[1] if name in LOSSES else "-"
        ratio = seconds[name] / seconds[own] if own in seconds else "-"
        rows.append([name, seconds[name], seconds[name] / unit, ratio, memory])
    header = ["", "seconds", "units", "times the time of d2_contrast", "MB beyond inputs and gradients"]
    return markdown(header, rows)


def growth(args: argparse.Namespace) -> tuple[str, dict[str, list[tuple[int, float, float]]]]:
    """Time and memory over the number of anchors, each in a process of its own; A x A forms stop at --anchors."""
    points: dict[str, list[tuple[int, float, float]]] = {name: [] for name in LOSSES}
    for anchors in args.sizes:
        for name in LOSSES:
            if "d2_contrast" in name or anchors <= args.anchors:
                repeats = args.repeats if anchors <= args.anchors else 1
                points[name].append((anchors, *measure_in_subprocess(name, anchors, args, repeats)))
    tables = []
    for column, quantity in ((1, "seconds"), (2, "MB beyond inputs and gradients")):
        rows = []
        for i, anchors in enumerate(args.sizes):
            rows.append([anchors, *(p[i][column] if i < len(p) else "-" for p in points.values())])
        tables.append(f"{quantity}:\n\n" + markdown(["anchors", *points], rows))
    return "\n\n".join(tables), points


def plot(points: dict[str, list[tuple[int, float, float]]], path: str) -> None:
    """Log-log picture of time and memory over the number of anchors."""
    seconds = {name: [(a, s) for a, s, _ in values] for name, values in points.items()}
    # Below 1 MB lies what the allocator keeps.
    memory = {name: [(a, max(mb, 1)) for a, _, mb in values] for name, values in points.items()}
    plot_growth(path, "anchors", {"seconds, forward + backward": seconds, "MB beyond inputs and gradients": memory})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=10000, help="size of the comparison")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median counts")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 2000, 5000, 10000, 20000, 50000, 100000])
    parser.add_argument("--plot", metavar="PNG", help="also draw time and memory over the number of anchors")
    parser.add_argument("--measure", choices=list(LOSSES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(*measure(args.measure, args.anchors, args.dim, args.classes, args.repeats))
        return
    print(f"{machine()}\n\nA = {args.anchors:,}, d = {args.dim}, {args.classes} classes, float32:\n", flush=True)
    print(compare(args), flush=True)
    if args.sizes:
        tables, points = growth(args)
        print(f"\nGrowth with the number of anchors, {tables}", flush=True)
        if args.plot:
            plot(points, args.plot)


if __name__ == "__main__":
    main()

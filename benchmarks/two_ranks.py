"""Random batches for the contrastive branch in two processes: does it hang, overflow, or drive them apart?

python -m benchmarks.two_ranks --batches 1000

Each process draws a batch of its own: other numbers and sizes of images, other classes, often one class only or none.
Branches with and without GATHER, of both ways of sampling and of projecting, take turns. Every loss has to be finite,
and after each step of the optimizer the parameters of both processes have to be equal bit for bit.
"""

import argparse
import itertools
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2_contrast.contrast import AnchorSampler, ContrastiveBranch, MultiScaleContrast, Projector

CHANNELS, CLASSES, IGNORED = 6, 5, 255
STRIDES = {"p2": 4, "p5": 8}
TIMEOUT = timedelta(seconds=60)  # of a process that waits for the other


def make_branches() -> list[nn.Module]:
    """A branch of each kind, the same in all processes."""
    torch.manual_seed(0)
    branches = []
    for gather, unit, project in itertools.product((False, True), ("class", "image_class"), ("dense", "anchors")):
        sampler = AnchorSampler(unit=unit, max_anchors=100, min_per_group=2, gather=gather)
        criterion = MultiScaleContrast({"p2": 1.0, "p5": 0.4}, {("p2", "p5"): 1.0}, sampler=sampler)
        projectors = {name: Projector(CHANNELS, 8) for name in STRIDES}
        branches.append(ContrastiveBranch(projectors, criterion, project))
    return branches


def make_batch(generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Features and labels of a few images; what there is to see in them is drawn, too."""

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images, height, width = pick(1, 4), 8 * pick(2, 6), 8 * pick(2, 6)
    features = {
        name: torch.randn(images, CHANNELS, height // stride, width // stride, generator=generator)
        for name, stride in STRIDES.items()
    }
    labels = torch.randint(CLASSES, (images, height // 8, width // 8), generator=generator)
    kind = pick(0, 5)
    if kind == 0:  # nothing
        labels[:] = IGNORED
    elif kind == 1:  # one class
        labels[:] = pick(0, CLASSES)
    elif kind == 2:  # nothing in one of the images
        labels[pick(0, images)] = IGNORED
    elif kind == 3:  # some of the classes
        labels[labels >= pick(1, CLASSES)] = IGNORED
    return features, labels.repeat_interleave(8, 1).repeat_interleave(8, 2)


def train(rank: int, rendezvous: Path, batches: int, seed: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rendezvous.as_uri(), timeout=TIMEOUT, rank=rank, world_size=2)
    branches = [DistributedDataParallel(branch) for branch in make_branches()]
    optimizer = torch.optim.SGD([p for branch in branches for p in branch.parameters()], lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(2 * seed + rank)
    empty = 0
    for number in range(batches):
        features, labels = make_batch(generator)
        torch.manual_seed(2 * number + rank)
        losses = branches[number % len(branches)](features, labels)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise RuntimeError(f"Batch {number}, process {rank}: {losses}")
        empty += not total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        own = torch.cat([p.detach().flatten() for p in branches[number % len(branches)].parameters()])
        first = own.clone()
        dist.broadcast(first, 0)
        if not torch.equal(first, own):
            raise RuntimeError(f"After batch {number} the parameters of the processes differ")
    print(f"process {rank}: {batches} batches, {empty} of them without a loss", flush=True)
    dist.barrier()


def run(batches: int, seed: int = 0) -> None:
    """Train in two processes; raises what goes wrong in one."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (Path(folder, "rendezvous"), batches, seed), nprocs=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run(args.batches, args.seed)


if __name__ == "__main__":
    main()

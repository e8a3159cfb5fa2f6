"""Two processes that share their anchors compute what one process with both batches computes."""

import itertools

import pytest
import torch
import torch.distributed as dist
from processes import run_in_two_processes

from benchmarks import two_ranks
from d2_contrast.contrast import AnchorSampler, ContrastiveBranch, MultiScaleContrast, Projector, describe_anchors

NAMES = ["p2", "p5"]


class EachPosition(torch.nn.LayerNorm):
    """A norm that does the same in a map, in a part of it and for anchors alone."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def make_branch(unit, project):
    """A branch without batch statistics, which would differ between one process and two."""
    torch.manual_seed(0)
    sampler = AnchorSampler(unit=unit, max_anchors=150, max_per_group=0, gather=True)
    criterion = MultiScaleContrast({"p2": 1, "p5": 0.4}, {("p2", "p5"): 1}, sampler=sampler)
    return ContrastiveBranch({n: Projector(6, 8, norm=EachPosition) for n in NAMES}, criterion, project)


def make_batch(case):
    """Features and labels of four images; the first two belong to rank 0, the others to rank 1."""
    generator = torch.Generator().manual_seed(1)
    features = {
        "p2": torch.randn(4, 6, 12, 12, generator=generator),
        "p5": torch.randn(4, 6, 6, 6, generator=generator),
    }
    labels = torch.randint(5, (4, 6, 6), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    if case == "rank 1 has nothing":
        labels[2:] = 255
    elif case == "rank 0 has nothing":
        labels[:2] = 255
    elif case == "nobody has anything":
        labels[:] = 255
    elif case == "classes apart":
        labels[:2], labels[2:] = labels[:2] % 2, labels[2:] % 2 + 2
    return features, labels


def run(branch, features, labels, seed):
    """Losses and statistics, after a backward pass."""
    torch.manual_seed(seed)
    anchor_sets = branch.sample(features, labels)
    losses, stats = branch.losses(anchor_sets), describe_anchors(anchor_sets)
    sum(losses.values()).backward()
    return {k: v.item() for k, v in losses.items()}, {k: float(v) for k, v in stats.items()}


CASES = ["both", "rank 1 has nothing", "rank 0 has nothing", "nobody has anything", "classes apart", "uneven split"]
UNITS = ["class", "image_class"]
PROJECT = ["dense", "anchors"]


def worker(rank, folder):
    results = {}
    for case, unit, project in itertools.product(CASES, UNITS, PROJECT):
        features, labels = make_batch(case)
        split = 1 if case == "uneven split" else 2
        mine = slice(0, split) if rank == 0 else slice(split, 4)
        branch = make_branch(unit, project)
        # Rank 1 has another seed: what is drawn must not depend on it.
        losses, stats = run(branch, {n: f[mine] for n, f in features.items()}, labels[mine], seed=rank)
        for parameter in branch.parameters():  # what DistributedDataParallel does
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
        results[case, unit, project] = losses, stats, [p.grad for p in branch.parameters()]
    features, labels = make_batch("both")
    if rank == 1:  # smaller images, and other numbers of them
        features, labels = {n: f[:1, :, : f.shape[2] // 2] for n, f in features.items()}, labels[:1, :24]
    results["sizes apart"] = run(make_branch("class", "dense"), features, labels, seed=rank)
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    run_in_two_processes(worker, folder, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("project", PROJECT)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_that_holds_both_batches(results, case, unit, project):
    branch = make_branch(unit, "dense")
    losses, stats = run(branch, *make_batch(case), seed=0)
    assert all(value > 0 for value in losses.values()) == (case != "nobody has anything")
    for rank in range(2):
        rank_losses, rank_stats, rank_grads = results[rank][case, unit, project]
        assert rank_losses == pytest.approx(losses, rel=1e-5)
        assert rank_stats == pytest.approx(stats, rel=1e-4, abs=1e-6, nan_ok=True)
        for grad, parameter in zip(rank_grads, branch.parameters()):
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_batches_of_different_shape(results):
    """Four images of one size on rank 0, one of another on rank 1: both ranks see the same anchors."""
    (losses, stats), (other_losses, other_stats) = (result["sizes apart"] for result in results)
    assert losses == other_losses and stats == other_stats
    assert all(value > 0 for value in losses.values())


def test_random_batches_drive_nothing_apart():
    two_ranks.run(batches=64)

"""Two processes that share their anchors compute what one process with both batches computes."""

import pytest
import torch
import torch.distributed as dist
from processes import run_in_two_processes

from d2_contrast.contrast import MultiScaleContrast, Projector

NAMES = ["p2", "p5"]


def make_model():
    """Projectors without batch statistics, which would differ between one process and two."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict({name: Projector(6, 8, norm=lambda c: torch.nn.GroupNorm(1, c)) for name in NAMES})


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


def run(model, features, labels, sampler, seed, sparse=True):
    """Losses and statistics; if sparse, only anchors pass the last layers of the projectors."""
    criterion = MultiScaleContrast(NAMES, [1, 0.4], [("p2", "p5")], sampler=sampler, max_anchors=150, gather=True)
    torch.manual_seed(seed)
    embeddings = {n: (model[n].hidden if sparse else model[n])(features[n]) for n in NAMES}
    last_layers = {n: model[n].last for n in NAMES} if sparse else None
    losses, stats = criterion(embeddings, labels, with_stats=True, last_layers=last_layers)
    sum(losses.values()).backward()
    return {k: v.item() for k, v in losses.items()}, {k: float(v) for k, v in stats.items()}


CASES = ["both", "rank 1 has nothing", "rank 0 has nothing", "nobody has anything", "classes apart", "uneven split"]
SAMPLERS = ["class", "image_class"]


def worker(rank, folder):
    results = {}
    for case in CASES:
        for sampler in SAMPLERS:
            features, labels = make_batch(case)
            split = 1 if case == "uneven split" else 2
            mine = slice(0, split) if rank == 0 else slice(split, 4)
            model = make_model()
            # Rank 1 has another seed: what is drawn must not depend on it.
            losses, stats = run(model, {n: f[mine] for n, f in features.items()}, labels[mine], sampler, seed=rank)
            for parameter in model.parameters():  # what DistributedDataParallel does
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2
            results[case, sampler] = losses, stats, [p.grad for p in model.parameters()]
    features, labels = make_batch("both")
    if rank == 1:  # smaller images, and other numbers of them
        features, labels = {n: f[:1, :, : f.shape[2] // 2] for n, f in features.items()}, labels[:1, :24]
    results["sizes apart"] = run(make_model(), features, labels, "class", seed=rank)
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    run_in_two_processes(worker, folder, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_that_holds_both_batches(results, case, sampler):
    model = make_model()
    losses, stats = run(model, *make_batch(case), sampler, seed=0, sparse=False)
    assert all(value > 0 for value in losses.values()) == (case != "nobody has anything")
    for rank in range(2):
        rank_losses, rank_stats, rank_grads = results[rank][case, sampler]
        assert rank_losses == pytest.approx(losses, rel=1e-5)
        assert rank_stats == pytest.approx(stats, rel=1e-4, abs=1e-6, nan_ok=True)
        for grad, parameter in zip(rank_grads, model.parameters()):
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_batches_of_different_shape(results):
    """Four images of one size on rank 0, one of another on rank 1: both ranks see the same anchors."""
    (losses, stats), (other_losses, other_stats) = (result["sizes apart"] for result in results)
    assert losses == other_losses and stats == other_stats
    assert all(value > 0 for value in losses.values())

"""How gradients are joined, against the formulas, in one backward pass, alone and in several processes."""

import pytest
import torch
from processes import run_in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_contrast.contrast import GradientBalance

RULES = [
    dict(),
    dict(share=0.3),
    dict(share=2.0),
    dict(remove_conflict=True),
    dict(share=0.3, remove_conflict=True),
]


class Network(nn.Module):
    """Two maps of different size from a shared layer, which a segmentation and a contrast read."""

    def __init__(self, balance, names=("a", "b"), opposed=False):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 4, 3)
        self.segment, self.contrast = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.balance, self.names, self.opposed = balance, names, opposed

    def forward(self, x, factor=1.0):
        y = self.backbone(x)
        self.maps = {"a": 1 * y, "b": 3 * nn.functional.avg_pool2d(y, 2)}
        mine, theirs = self.maps, self.maps
        if self.balance is not None:
            mine, theirs = self.balance.split(self.maps, self.names, factor)
        segmentation = sum(self.segment(m).square().mean() for m in mine.values())
        contrast = sum(self.contrast(theirs[name]).sin().mean() for name in self.names)
        if self.opposed:
            contrast = contrast - 0.5 * sum(self.segment(theirs[n]).square().mean() for n in self.names)
        return segmentation, contrast


def expected_join(segmentation, contrast, share=0.0, remove_conflict=False, factor=1.0):
    """On one long vector each."""
    s, c = (torch.cat([x.flatten() for x in part]).double() for part in (segmentation, contrast))
    if remove_conflict and s @ c < 0:
        c = c - (s @ c) / (s @ s) * s
    return s + (factor * share * s.norm() / c.norm() if share else 1.0) * c


def images(seed=0):
    return torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_against_the_formula(rule, opposed):
    """The gradients at the maps by two backward passes, joined by hand, and then one pass through the backbone."""
    plain = Network(None, opposed=opposed)
    segmentation, contrast = plain(images())
    maps = list(plain.maps.values())
    parts = [torch.autograd.grad(loss, maps, retain_graph=True) for loss in (segmentation, contrast)]
    for factor in (1.0, 0.25):
        joined = expected_join(*parts, **rule, factor=factor)
        sizes = [m.numel() for m in maps]
        pieces = [p.view_as(m).float() for p, m in zip(joined.split(sizes), maps)]
        expected = torch.autograd.grad(maps, list(plain.backbone.parameters()), pieces, retain_graph=True)

        network = Network(GradientBalance(**rule), opposed=opposed)
        (sum(network(images(), factor))).backward()
        torch.testing.assert_close([p.grad for p in network.backbone.parameters()], list(expected))
        for part in ("segment", "contrast"):  # behind the maps nothing is changed
            own, there = getattr(network, part).weight, getattr(plain, part).weight
            (expected,) = torch.autograd.grad(segmentation + contrast, there, retain_graph=True)
            torch.testing.assert_close(own.grad, expected)
        conflict = torch.cat([x.flatten() for x in parts[0]]) @ torch.cat([x.flatten() for x in parts[1]])
        assert (conflict < 0) or not opposed


def test_without_a_rule_it_is_the_sum_bit_for_bit():
    gradients = []
    for balance in (None, GradientBalance()):
        network = Network(balance)
        sum(network(images())).backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_the_scale_of_the_loss_cancels_out():
    """As of a GradScaler, and of the weights of the contrastive losses."""
    gradients = []
    for scale, weight in ((1.0, 1.0), (2.0**16, 1.0), (1.0, 100.0)):
        network = Network(GradientBalance(share=0.3))
        segmentation, contrast = network(images())
        (scale * (segmentation + weight * contrast)).backward()
        gradients.append([p.grad / scale for p in network.backbone.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_a_map_that_one_side_does_not_read():
    """Its gradient is that of the other side; maps that are not shared are passed on as they are."""
    balance = GradientBalance(share=0.5)
    maps = {name: torch.randn(1, 2, 3, 3, requires_grad=True) for name in "abc"}
    mine, theirs = balance.split(maps, ["a", "b"])
    assert mine["c"] is theirs["c"] is maps["c"]
    (2 * mine["a"].sum() + 3 * theirs["b"].sum()).backward()
    torch.testing.assert_close(maps["a"].grad, torch.full((1, 2, 3, 3), 2.0))
    torch.testing.assert_close(maps["b"].grad, torch.full((1, 2, 3, 3), 0.5 * 2.0))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_gradient_on_one_side(rule):
    """Zeros are left as they are, and no division by them reaches the backbone."""
    for weights in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        network = Network(GradientBalance(**rule))
        segmentation, contrast = network(images())
        (weights[0] * segmentation + weights[1] * contrast).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())
        if weights[0] == 0 and "share" in rule:
            assert all((p.grad == 0).all() for p in network.backbone.parameters())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_half_precision(rule):
    """Gradients whose squares overflow or vanish there."""
    for dtype, size in ((torch.float16, 1e3), (torch.float16, 1e-5), (torch.bfloat16, 1e12)):
        segmentation = [size * torch.tensor([1.0, 2.0, 2.0])]
        contrast = [size * torch.tensor([-2.0, 0.0, 1.0])]
        (joined,) = GradientBalance(**rule).join(*([x.to(dtype) for x in part] for part in (segmentation, contrast)))
        expected = expected_join(segmentation, contrast, **rule)
        torch.testing.assert_close(joined.double(), expected, rtol=2e-2, atol=size * 2e-2)


def test_measured():
    network = Network(GradientBalance(share=0.3), opposed=True)
    assert network.balance.take_measured() == {}
    network.balance.measure = True
    sum(network(images())).backward()
    measured = network.balance.take_measured()
    plain = Network(None, opposed=True)
    losses = plain(images())
    maps = list(plain.maps.values())
    s, c = (torch.cat([x.flatten() for x in torch.autograd.grad(loss, maps, retain_graph=True)]) for loss in losses)
    assert measured == pytest.approx(
        {
            "segmentation_norm": s.norm().item(),
            "contrast_norm": c.norm().item(),
            "ratio": (c.norm() / s.norm()).item(),
            "cosine": (s @ c / (s.norm() * c.norm())).item(),
        },
        rel=1e-4,
    )
    assert measured["cosine"] < 0 and network.balance.take_measured() == {}
    sum(network(images())).backward()
    assert network.balance.take_measured() == {}  # not asked for
    network.balance.measure = True
    (0 * sum(network(images()))).backward()
    assert network.balance.take_measured() == {"segmentation_norm": 0.0, "contrast_norm": 0.0}


def test_bad_share():
    for share in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="share must be at least 0, got"):
            GradientBalance(share)


def worker(rank, folder):
    results = []
    for rule in RULES:
        model = DistributedDataParallel(Network(GradientBalance(**rule), opposed=True))
        for step in range(2):
            with model.no_sync() if step == 0 else torch.enable_grad():  # accumulated
                sum(model(images(2 * step + rank))).backward()
        results.append([p.grad for p in model.module.backbone.parameters()])
    torch.save(results, folder / f"rank{rank}.pt")


def test_two_processes(tmp_path):
    """Gradients that each has joined are averaged, with one synchronisation."""
    run_in_two_processes(worker, tmp_path, tmp_path)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for i, rule in enumerate(RULES):
        total = [torch.zeros_like(p) for p in Network(None).backbone.parameters()]
        for seed in range(4):
            network = Network(GradientBalance(**rule), opposed=True)
            sum(network(images(seed))).backward()
            total = [t + p.grad / 2 for t, p in zip(total, network.backbone.parameters())]
        for rank in range(2):
            torch.testing.assert_close(results[rank][i], total)

"""Layers that several parts of the networks share; positions of maps are tested with those of predictions."""

import copy

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.utils import comm
from timm.layers import BatchNormAct2d
from tiny_models import make_batch, small_model
from torch import nn

from d2_contrast.modeling.backbone import TimmBackbone
from d2_contrast.modeling.layers import allow_single_values


def make_norm(kind: str) -> nn.Module:
    norm = BatchNormAct2d(3) if kind == "timm's" else get_norm(kind, 3)
    generator = torch.Generator().manual_seed(0)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


@pytest.mark.parametrize("kind", ["BN", "SyncBN", "timm's"])
class TestSingleValues:
    def test_more_values_are_normalised_as_ever(self, kind):
        norm = make_norm(kind)
        ours = allow_single_values(copy.deepcopy(norm))
        for shape in [(2, 3, 1, 1), (1, 3, 1, 2), (2, 3, 4, 5)]:
            for mode in (True, False):
                x = torch.randn(shape)
                assert torch.equal(ours.train(mode)(x), norm.train(mode)(x))
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), norm.state_dict().values()))

    def test_one_value_is_normalised_as_at_inference(self, kind):
        norm = make_norm(kind)
        ours, before = allow_single_values(copy.deepcopy(norm)), copy.deepcopy(norm.state_dict())
        x = torch.full((1, 3, 1, 1), 3.0, requires_grad=True)  # large enough for timm's norm, which ends with a ReLU
        with pytest.raises(ValueError, match="more than 1 value"):
            norm(x)
        y = ours(x)
        assert torch.equal(y, norm.eval()(x)) and ours.training
        y.sum().backward()
        assert x.grad.any() and ours.weight.grad is not None
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in before.items())

    def test_copies_have_their_own_statistics(self, kind):
        ours = allow_single_values(make_norm(kind))
        other = copy.deepcopy(ours)
        other(torch.randn(4, 3, 2, 2))
        assert not torch.equal(other.running_mean, ours.running_mean)


@pytest.mark.parametrize(("kind", "synchronised"), [("BN", False), ("SyncBN", True), ("naiveSyncBN", True)])
def test_values_of_all_processes_count_where_they_are_shared(kind, synchronised, monkeypatch):
    norm = make_norm(kind)
    modes = []
    monkeypatch.setattr(type(norm), "forward", lambda self, x: modes.append(self.training))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    allow_single_values(norm)(torch.randn(1, 3, 1, 1))
    assert modes == [synchronised]


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_a_batch_of_one_trains(size):
    """The pyramid pools its coarsest map to one position; of the smallest image, that map has a single one itself."""
    model = small_model("cityscapes/uper_r101_contrast_bs12_120k.yaml")
    batch = make_batch(size)
    sum(model(batch).values()).backward()
    sum(model(batch).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnest14d", "skresnet18"])  # these normalise what they pooled
def test_a_batch_of_one_trains_backbones_that_pool(name):
    maps = TimmBackbone(name=name).train()(torch.randn(1, 3, 32, 32))
    assert all(x.isfinite().all() for x in maps.values())

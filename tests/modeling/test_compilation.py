"""Compiled networks: what is compiled, how often, and that nothing else changes."""

import copy

import pytest
import torch
from tiny_models import make_batch, small_model
from torch import nn
from torch._dynamo.utils import counters

from d2_contrast.modeling.compilation import check_compiler, compile_network

UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"
OPTIONS = {"MODEL__SEM_SEG_HEAD__DROPOUT": 0.0, "MODEL__AUX_HEAD__DROPOUT": 0.0, "MODEL__CONTRAST__NORM": "BN"}
PARTS = 7  # backbone, two heads, four projectors


class Counting:
    """A backend of torch.compile that counts graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


class Part(nn.Module):
    """A layer in a module outside of torch, of whose own modules torch 2.4 compiles none by themselves."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def backend():
    torch._dynamo.reset()
    counters.clear()
    yield Counting()
    torch._dynamo.reset()


def test_parts_are_compiled_in_whole_and_change_no_values(backend):
    model = small_model(UPER, **OPTIONS)
    compiled = compile_network(copy.deepcopy(model), backend)
    assert list(compiled.state_dict()) == list(model.state_dict())
    batch, results = make_batch((64, 64), (64, 64)), []
    for network in (model, compiled):
        torch.manual_seed(0)
        losses = network(batch)
        results.append((losses, torch.autograd.grad(sum(losses.values()), [*network.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert backend.graphs == PARTS and not counters["graph_break"]
    compiled(make_batch((64, 64), (64, 64), seed=1))  # other numbers of anchors
    assert backend.graphs == PARTS


def test_other_sizes_are_compiled_once_for_all(backend):
    model = nn.Module()
    model.backbone = Part(nn.Conv2d(3, 4, 4, stride=4))
    model.sem_seg_head = Part(nn.Upsample(scale_factor=4, mode="bilinear"))
    compile_network(model, backend)
    graphs = []
    for size in ((64, 96), (128, 64), (96, 160), (60, 84), (192, 128)):
        with torch.no_grad():
            assert model.sem_seg_head(model.backbone(torch.zeros(1, 3, *size))).shape[2:] == size
        graphs.append(backend.graphs)
    assert graphs[0] == 2 < graphs[1] <= 4 and set(graphs[1:]) == {graphs[1]}


def test_without_a_compiler(monkeypatch):
    def fail(function):
        def call(x):
            raise OSError("No working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(RuntimeError, match=r"\(No working .* found\): install a C\+\+ compiler .*MODEL.COMPILE False"):
        check_compiler(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="MODEL.COMPILE is True"):
        compile_network(small_model(UPER))

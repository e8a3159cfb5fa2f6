import copy

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.utils.events import EventStorage
from torch import nn

from d2_contrast.config import default_config
from d2_contrast.engine import TrainStep, build_optimizer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5))

    def forward(self, gradients):
        """A loss with these gradients for the bias and the table, and zeros for all others."""
        pulled = dict(zip((self.conv.bias, self.relative_position_bias_table), gradients))
        return {"loss": sum((p * pulled.get(p, 0.0)).sum() for p in self.parameters())}


def decay_of(cfg) -> dict[str, float]:
    network = Network()
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = build_optimizer(cfg, network).param_groups
    return {names[p]: group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize(("bias_key", "bias_decay"), [(None, 0.1), (0.0, 0.0)])
def test_what_decays(name, bias_key, bias_decay):
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_BIAS", bias_key])
    assert decay_of(cfg) == {
        "conv.weight": 0.1,
        "conv.bias": bias_decay,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "relative_position_bias_table": 0.0,
    }


def test_settings_reach_the_optimizer():
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.3, "SOLVER.MOMENTUM", 0.8, "SOLVER.NESTEROV", True])
    sgd = build_optimizer(cfg, Network())
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["lr"], g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.3, 0.8, True)}
    cfg.SOLVER.OPTIMIZER = "AdamW"
    assert isinstance(build_optimizer(cfg, Network()), torch.optim.AdamW)


@pytest.mark.parametrize(
    ("clip_type", "bias", "table"),
    [
        ("value", [0.5, -0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5]),
        ("norm", [0.3, -0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5]),  # of each: 5 and 12
        ("full_model", [1.5 / 13, -2 / 13, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 6 / 13]),  # of both together: 13
    ],
)
@pytest.mark.parametrize("amp_dtype", [None, "float16"])
def test_gradients_are_clipped(clip_type, bias, table, amp_dtype):
    """By hand; gradients of a scaled loss, of mixed precision, are clipped as they are without the scale."""
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0])
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", clip_type, "CLIP_VALUE", 0.5])
    network = Network()
    before = copy.deepcopy(network)
    gradients = torch.tensor([3.0, -4.0, 0.25 if clip_type == "value" else 0.0, 0.0]), torch.tensor([0.0] * 4 + [12.0])
    step = TrainStep(network, [gradients], build_optimizer(cfg, network), amp_dtype=amp_dtype)
    with EventStorage():
        step.iter = 0
        step.run_step()
    torch.testing.assert_close(before.conv.bias - network.conv.bias, torch.tensor(bias))
    torch.testing.assert_close(
        before.relative_position_bias_table - network.relative_position_bias_table, torch.tensor(table)
    )


class Conv(nn.Module):
    """Its gradients overflow in float16 in the first steps, as those of a large loss do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, images):
        return {"loss": 100 * self.conv(images).square().mean()}


@pytest.fixture(params=["SGD", "AdamW"])
def conv(request):
    """A config for each optimizer, a network and images."""
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.OPTIMIZER", request.param, "SOLVER.BASE_LR", 0.01])
    torch.manual_seed(0)
    return cfg, Conv(), torch.randn(2, 8, 6, 6)


def test_float16_that_overflows_at_first_leaves_no_trace(conv):
    """Moments afterwards are those of a run that begins with the first step that is taken."""
    cfg, model, images = conv
    outcomes = []
    for scale in (2.0**20, 2.0**6):
        network = copy.deepcopy(model)
        step = TrainStep(network, [images] * 30, build_optimizer(cfg, network), amp_dtype="float16")
        step.grad_scaler._init_scale = scale
        garbage = [torch.full_like(p, 1e30) for p in network.parameters() for _ in range(4)]
        del garbage  # what memory that nobody has set may hold
        with EventStorage():
            for step.iter in range(30):
                step.run_step()
                if not torch.equal(network.conv.weight, model.conv.weight):
                    break
        outcomes.append((step.iter, step.optimizer.state_dict()["state"]))
    (skipped, late), (taken, early) = outcomes
    assert skipped > 0 and taken == 0
    torch.testing.assert_close(late, early, rtol=2e-2, atol=1e-4)


def test_moments_have_the_layout_of_their_parameters(conv):
    """A run that goes on with MODEL.CHANNELS_LAST turned on steps as it would have without."""
    cfg, model, images = conv
    step = TrainStep(model, [images] * 2, build_optimizer(cfg, model))
    with EventStorage():
        for step.iter in range(2):
            step.run_step()
    state, weights = step.state_dict(), copy.deepcopy(model.state_dict())
    after = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = Conv()
        network.load_state_dict(weights)
        network.to(memory_format=layout)
        again = TrainStep(network, [images], build_optimizer(cfg, network))
        again.load_state_dict(copy.deepcopy(state))
        with EventStorage():
            again.iter = 2
            again.run_step()
        after.append(network.conv.weight.detach().contiguous())
    torch.testing.assert_close(*after, rtol=1e-5, atol=1e-6)


def test_factors_of_learning_rates_multiply():
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.01, "SOLVER.HEAD_LR_FACTOR", 10.0, "SOLVER.BIAS_LR_FACTOR", 2.0])
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    expected = {"backbone.weight": 0.01, "backbone.bias": 0.02, "head.weight": 0.1, "head.bias": 0.2}
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("key", "decay"), [(0.02, 0.02), (None, 0.1)])
@pytest.mark.parametrize("norm", ["BN", "GN", "LN"])
def test_norms_have_a_decay_of_their_own(norm, key, decay):
    """Whatever class Detectron2 makes of the name in a config; None stands for that of all else."""
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", key])
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 32, 1), "norm": get_norm(norm, 32)})
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    decays = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {"conv.weight": 0.1, "conv.bias": 0.1, "norm.weight": decay, "norm.bias": decay}

import copy

import pytest
import torch
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

import pytest
import torch
from torch import nn

from d2_contrast.config import default_config
from d2_contrast.engine import build_optimizer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5))


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


def test_gradients_are_clipped():
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0])
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5])
    network = Network()
    before = network.conv.bias.detach().clone()
    optimizer = build_optimizer(cfg, network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network.conv.bias.grad = torch.tensor([3.0, -3.0, 0.25, 0.0])
    optimizer.step()
    torch.testing.assert_close(before - network.conv.bias.detach(), torch.tensor([0.5, -0.5, 0.25, 0.0]))


def test_unknown_optimizer():
    cfg = default_config()
    cfg.SOLVER.OPTIMIZER = "Adamw"
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'Adamw'"):
        build_optimizer(cfg, Network())

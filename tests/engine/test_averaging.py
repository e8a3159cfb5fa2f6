from types import SimpleNamespace

import pytest
import torch
from torch import nn

from d2_contrast.config import default_config
from d2_contrast.engine.averaging import UpdateAverage, averaged_weights, build_average


class Indexed(nn.Module):
    """A weight and indices, as Swin has them for its table of position biases."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7))
        self.register_buffer("index", torch.arange(2000))


def build(model, decay):
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", decay])
    return build_average(cfg, model)


def test_average_of_weights():
    model = Indexed()
    average = build(model, 0.75)
    expected = 0.0
    for step in range(4):
        with torch.no_grad():
            model.weight.copy_(torch.randn(7))
            model.index.add_(1)
        average.update_parameters(model)
        expected = 0.75 * expected + 0.25 * model.weight.detach() if step else model.weight.detach().clone()
    torch.testing.assert_close(average.module.weight, expected)
    own = model.weight.detach().clone()
    with averaged_weights(model, average):
        torch.testing.assert_close(model.weight, expected)
        assert torch.equal(model.index, torch.arange(4, 2004))
    assert torch.equal(model.weight, own)


@pytest.mark.parametrize("decay", [0.9, 0.9995, 0.9999, 0.99995])
def test_what_does_not_change_is_its_own_average(decay):
    """Indices that were mixed as numbers would be rounded down, to others."""
    model = Indexed()
    average = build(model, decay)
    for _ in range(4):
        average.update_parameters(model)
    assert torch.equal(average.module.index, model.index)
    torch.testing.assert_close(average.module.weight, model.weight)


def test_a_skipped_step_is_not_averaged():
    model = Indexed()
    average = build(model, 0.75)
    hook = UpdateAverage(average, model)
    for is_skipped in (True, False, True):
        hook.trainer = SimpleNamespace(_trainer=SimpleNamespace(is_skipped=is_skipped))
        hook.after_step()
    assert average.n_averaged == 1

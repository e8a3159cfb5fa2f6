import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from d2_contrast.engine import TrainStep


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, batch):
        x, y = batch
        return {"loss_square": (self.linear(x) - y).square().mean(), "loss_size": 0.1 * self.linear.weight.abs().sum()}


def run(model, batches, **options) -> tuple[nn.Module, dict[str, float]]:
    model = copy.deepcopy(model)
    step = TrainStep(model, batches, torch.optim.SGD(model.parameters(), 0.1), **options)
    with EventStorage() as storage:
        step.iter = 0
        step.run_step()
        return model, {name: value for name, (value, _) in storage.latest().items() if "loss" in name}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)


def test_accumulation_equals_one_large_batch(batch):
    torch.manual_seed(0)
    model = Regression()
    whole, whole_losses = run(model, [batch])
    parts = [tuple(t[i : i + 2] for t in batch) for i in range(0, 8, 2)]
    accumulated, losses = run(model, parts, accumulation_steps=4)
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict())
    assert losses == pytest.approx(whole_losses)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_is_near_full_precision(batch, dtype):
    torch.manual_seed(0)
    model = Regression()
    full, _ = run(model, [batch])
    mixed = copy.deepcopy(model)
    step = TrainStep(mixed, [batch] * 20, torch.optim.SGD(mixed.parameters(), 0.1), amp_dtype=dtype)
    with EventStorage():
        # Loss scaling starts high and skips steps until gradients are finite.
        for step.iter in range(20):
            step.run_step()
            if not torch.equal(mixed.linear.weight, model.linear.weight):
                break
    difference = (mixed.linear.weight - full.linear.weight).abs().max()
    assert 0 < difference < 0.02 * full.linear.weight.abs().max()


def test_a_loss_that_is_not_finite_stops_before_the_step(batch):
    x, y = batch
    model = Regression()
    step = TrainStep(model, [(x * float("inf"), y)], torch.optim.SGD(model.parameters(), 0.1))
    before = copy.deepcopy(model.state_dict())
    with EventStorage(), pytest.raises(FloatingPointError, match="iteration=0"):
        step.iter = 0
        step.run_step()
    torch.testing.assert_close(model.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "key"),
    [({"accumulation_steps": 0}, "SOLVER.ACCUMULATION_STEPS"), ({"amp_dtype": "float8"}, "SOLVER.AMP.DTYPE")],
)
def test_errors_name_the_key(options, key):
    model = Regression()
    with pytest.raises(ValueError, match=key):
        TrainStep(model, [], torch.optim.SGD(model.parameters(), 0.1), **options)

import copy
import math
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from processes import run_in_two_processes
from torch import nn

from d2_contrast.engine import TrainStep
from d2_contrast.engine.checkpoint import NonFiniteError
from d2_contrast.engine.train_step import NonFinitePolicy


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


class Normalised(nn.Module):
    """Its loss is not finite where an input is not; its gradient alone, where an input is 0; it counts batches."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(1, 1), nn.BatchNorm1d(1)

    def forward(self, batch):
        x = torch.tensor([[sample["x"]] for sample in batch])
        near_zero = (x * self.linear.weight).square().sum().sqrt()  # whose derivative at 0 is inf * 0
        return {"loss_a": self.norm(torch.cat([self.linear(x), x])).square().mean(), "loss_b": near_zero}


def sample(x: float) -> dict:
    return {"x": x, "file_name": f"{x}.png"}


def normalised_step(*values: float, **options) -> TrainStep:
    torch.manual_seed(0)
    model = Normalised()
    batches = [[sample(x)] for x in values]
    return TrainStep(model, batches, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **options)


BAD = [(math.inf, "loss_a nan, loss_b inf, from inf.png"), (0.0, "gradient of linear.weight, from 0.0.png")]


@pytest.mark.parametrize(("value", "problem"), BAD, ids=["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(value, problem):
    step = normalised_step(value)
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    with EventStorage(), pytest.raises(NonFiniteError) as raised:
        step.iter = 7
        step.run_step()
    assert str(raised.value) == f"Not finite in iteration 7: {problem}" and raised.value.ranks == [0]
    torch.testing.assert_close(dict(step.model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [value for value, _ in BAD], ids=["loss", "gradient"])
def test_skipped_steps_leave_no_trace(value):
    """As if the batches had not been there: weights, momentum, running statistics."""
    good = [1.0, 2.0, -3.0]
    skipping = normalised_step(1.0, value, value, 2.0, value, -3.0, non_finite=NonFinitePolicy("skip", 3))
    plain = normalised_step(*good)
    with EventStorage() as storage:
        noted = []
        for step, count in ((skipping, 6), (plain, 3)):
            for step.iter in range(count):
                step.run_step()
                noted.append(step.is_skipped)
        assert noted == [False, True, True, False, True, False] + [False] * 3
        assert skipping.skipped == 3 and storage.latest()["skipped_steps"][0] == 3
    torch.testing.assert_close(skipping.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    states = [step.optimizer.state_dict()["state"] for step in (skipping, plain)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_too_many_in_a_row_stop():
    step = normalised_step(*[1.0, math.nan, math.nan, 1.0] + 3 * [math.nan], non_finite=NonFinitePolicy("skip", 3))
    with EventStorage(), pytest.raises(NonFiniteError, match="nan.png; so it was in 3 steps in a row"):
        for step.iter in range(10):
            step.run_step()
    assert step.iter == 6 and step.skipped == 4


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_float16_blames_the_scale_while_it_magnifies(action):
    """From 4 it is halved twice. Then gradients that are not finite are treated as without a scale."""
    step = normalised_step(*[0.0] * 9, amp_dtype="float16", non_finite=NonFinitePolicy(action, 3))
    step.grad_scaler._init_scale = 4.0
    before = copy.deepcopy(step.model.state_dict())
    with EventStorage(), pytest.raises(NonFiniteError, match="gradient of linear.weight, from 0.0.png"):
        for step.iter in range(9):
            step.run_step()
            assert step.is_skipped == (step.iter >= 2)
    assert (step.iter, step.skipped) == {"stop": (2, 0), "skip": (4, 2)}[action]
    assert step.grad_scaler.get_scale() == 1
    assert all(torch.equal(step.model.state_dict()[name], before[name]) for name in ("linear.weight", "linear.bias"))


def test_large_gradients_are_finite():
    step = normalised_step(1.0)
    step.model.linear.weight.grad = torch.tensor([[3e38]])
    step.model.linear.bias.grad = torch.tensor([-3e38])
    assert step.infinite_gradients() == []
    step.model.linear.bias.grad = torch.tensor([math.nan])
    assert step.infinite_gradients() == ["linear.bias"]


def bad_in_one(rank: int, folder: Path, action: str) -> None:
    values = [1.0, 2.0 if rank == 0 else math.inf, 3.0]
    step = normalised_step(*values, non_finite=NonFinitePolicy(action))
    step.model = nn.parallel.DistributedDataParallel(step.model, broadcast_buffers=False)
    try:
        with EventStorage():
            for step.iter in range(3):
                step.run_step()
        text = step.model.module.linear.weight.item()
    except NonFiniteError as error:
        text = f"{error} {error.ranks}"
    (folder / f"{action}{rank}").write_text(str(text))


def in_both(rank: int, folder: Path) -> None:
    for action in ("stop", "skip"):
        bad_in_one(rank, folder, action)


def test_processes_agree(tmp_path):
    """What is wrong in one has all stop, with the same words, or all skip."""
    run_in_two_processes(in_both, tmp_path, tmp_path)
    texts = {name: (tmp_path / name).read_text() for name in ("stop0", "stop1", "skip0", "skip1")}
    expected = "Not finite in iteration 1: loss_a nan, loss_b inf in process 1 of 2, from inf.png [1]"
    assert texts["stop0"] == texts["stop1"] == expected
    assert texts["skip0"] == texts["skip1"] and math.isfinite(float(texts["skip0"]))


@pytest.mark.parametrize(
    ("options", "key"),
    [({"accumulation_steps": 0}, "SOLVER.ACCUMULATION_STEPS"), ({"amp_dtype": "float8"}, "SOLVER.AMP.DTYPE")],
)
def test_errors_name_the_key(options, key):
    model = Regression()
    with pytest.raises(ValueError, match=key):
        TrainStep(model, [], torch.optim.SGD(model.parameters(), 0.1), **options)


def test_errors_of_the_policy_name_the_key():
    with pytest.raises(ValueError, match="SOLVER.NON_FINITE is 'go on': expected"):
        NonFinitePolicy("go on")
    with pytest.raises(ValueError, match="SOLVER.NON_FINITE_MAX_IN_ROW is 0: expected"):
        NonFinitePolicy("skip", 0)

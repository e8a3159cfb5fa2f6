import random
from contextlib import suppress

import pytest
import torch
from detectron2.projects.deeplab import build_lr_scheduler

from d2_contrast.config import default_config, load_config
from d2_contrast.engine.schedule import check_schedule


def rates_of_training(cfg) -> list[float]:
    """The rates that an optimizer has in a run, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def random_config(generator: random.Random):
    """A config whose values are all in range."""
    max_iter = generator.choice([1, 2, 7, 60])
    return load_config(
        "",
        [
            *("SOLVER.LR_SCHEDULER_NAME", generator.choice(["WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR"])),
            *("SOLVER.MAX_ITER", max_iter),
            *("SOLVER.WARMUP_ITERS", generator.choice([0, 1, 5, 100])),
            *("SOLVER.WARMUP_FACTOR", generator.choice([0.0, 0.001, 1.0])),
            *("SOLVER.WARMUP_METHOD", generator.choice(["linear", "constant"])),
            *("SOLVER.RESCALE_INTERVAL", generator.choice([False, True])),
            *("SOLVER.STEPS", tuple(sorted(generator.sample(range(1, 70), 3)))),
            *("SOLVER.POLY_LR_POWER", generator.choice([0.0, 0.9, 10.0])),
            *("SOLVER.POLY_LR_CONSTANT_ENDING", generator.choice([0.0, 0.3])),
        ],
    )


def test_what_it_lets_through_can_be_trained():
    """And nothing else is refused: the schedule itself is the judge, run step by step."""
    generator = random.Random(0)
    refused = 0
    for _ in range(150):
        cfg = random_config(generator)
        try:
            check_schedule(cfg)
        except ValueError:
            refused += 1
            with suppress(ZeroDivisionError, ValueError):
                assert not any(rates_of_training(cfg))
        else:
            rates = rates_of_training(cfg)
            assert min(rates) >= 0 and max(rates) > 0
    assert 0 < refused < 75


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("WarmupPolyLR", "POLY_LR_POWER", -1.0, "no learning rate in iteration 20 .*look at SOLVER.*POLY"),
        ("WarmupPolyLR", "WARMUP_METHOD", "burnin", "in iteration 0 .*burnin"),
        (
            "WarmupStepWithFixedGammaLR",
            "NUM_DECAYS",
            50,
            "'WarmupStepWithFixedGammaLR' with SOLVER.MAX_ITER 20 gives no",
        ),
        ("WarmupMultiStepLR", "GAMMA", -0.1, "in iteration 10 .the rate is -"),
        ("WarmupPolyLR", "BASE_LR", float("nan"), "the rate is nan"),
    ],
)
def test_refuses(name, key, value, message):
    cfg = default_config()
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", 20, "SOLVER.STEPS", (10,)])
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 5, f"SOLVER.{key}", value])
    with pytest.raises(ValueError, match=message):
        check_schedule(cfg)


def test_a_warm_up_that_outlasts_the_run_is_warned_of(caplog):
    check_schedule(load_config("", ["SOLVER.MAX_ITER", 20, "SOLVER.WARMUP_ITERS", 19, "SOLVER.STEPS", ()]))
    assert not caplog.messages
    check_schedule(load_config("", ["SOLVER.MAX_ITER", 20, "SOLVER.STEPS", ()]))
    (message,) = caplog.messages
    assert "SOLVER.MAX_ITER is 20, WARMUP_ITERS 1000" in message


def test_setup_looks_at_the_schedule_before_anything_is_written(make_cfg, tmp_path):
    options = ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS", 50]
    with pytest.raises(ValueError, match="NUM_DECAYS"):
        make_cfg(*options)
    assert not (tmp_path / "output").exists()
    make_cfg(*options, eval_only=True)

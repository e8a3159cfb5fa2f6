"""A run that was interrupted ends as it would have ended without."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from d2_contrast.engine import Trainer

# All that draws random numbers: crops, colours, blur, anchors, dropout, drop path, and repeats of rare classes.
RANDOM = {
    "SEED": 3,
    "MODEL.SEM_SEG_HEAD.DROPOUT": 0.5,
    "MODEL.TIMM.DROP_PATH": 0.3,
    "INPUT.SCALE_RANGE": [0.5, 1.5],
    "INPUT.COLOR_JITTER.ENABLED": True,
    "INPUT.BLUR.PROB": 0.5,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.9,
}
LENGTH = {"SOLVER.MAX_ITER": 21, "SOLVER.CHECKPOINT_PERIOD": 7, "SOLVER.MAX_TO_KEEP": 0}
SHORT = {"SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 3}
CASES = {
    "average, accumulation": {"SOLVER.EMA.ENABLED": True, "SOLVER.ACCUMULATION_STEPS": 2},
    "bfloat16": SHORT | {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16", "SOLVER.OPTIMIZER": "SGD"},
    "float16": SHORT | {"SOLVER.AMP.ENABLED": True, "SOLVER.NON_FINITE": "skip", "SOLVER.EMA.ENABLED": True},
}
# What depends on the clock.
TIMES = ("time", "data_time", "eta_seconds")


def flat(options: dict) -> list:
    return [part for pair in options.items() for part in pair]


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    """The last checkpoint and the log of a run."""
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return checkpoint, [line for line in lines if len(line) > 1]


def tensors(tree, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {name: tensor for key, part in items for name, tensor in tensors(part, f"{path}/{key}").items()}


def differing(folder: Path, other: Path) -> list[str]:
    """What two runs ended differently in: names of tensors, "log"."""
    (first, first_log), (second, second_log) = outcome(folder), outcome(other)
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys() and len(a) > 100
    found = [name for name in a if not torch.equal(a[name], b[name])]
    if first["trainer"]["_trainer"]["grad_scaler"] != second["trainer"]["_trainer"]["grad_scaler"]:
        found.append("scaler")
    return found + ["log"] * (first_log != second_log)


def rewind(folder: Path, iteration: int) -> None:
    """As if the run had been killed while it was on its way to the checkpoint after that of ``iteration``."""
    for path in folder.glob("model_*.pth"):
        if path.stem == "model_final" or int(path.stem.removeprefix("model_")) > iteration:
            path.unlink()
    (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go_on(cfg) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


@pytest.fixture
def interrupted(make_cfg, tmp_path):
    """Train a run to its end; then go on with it after an iteration, with other options, and compare the ends."""

    def start(case: str):
        options = flat(RANDOM | LENGTH | CASES[case])
        Trainer(make_cfg(*options)).train()
        whole, folder = tmp_path / "whole", tmp_path / "output"
        shutil.copytree(folder, whole)

        def compare(iteration: int, **others) -> list[str]:
            rewind(folder, iteration)
            go_on(make_cfg(*options, *flat({key.replace("__", "."): v for key, v in others.items()}), resume=True))
            return differing(folder, whole)

        return compare

    return start


@pytest.mark.parametrize("case", ["bfloat16", "float16"])
def test_interrupted_runs_end_alike(interrupted, case, logged):
    compare = interrupted(case)
    assert compare(2) == []
    assert "Going on in the data after" in logged() and "Not exactly as without" not in logged()


def test_workers_make_no_difference_and_what_is_not_restored_does(interrupted, monkeypatch, logged):
    compare = interrupted("average, accumulation")
    assert compare(6, DATALOADER__NUM_WORKERS=2) == []
    assert compare(13, DATALOADER__NUM_WORKERS=3) == []
    assert "Not exactly as without" not in logged()

    # Were any part of it not restored, the comparison would show it.
    restore = Trainer._go_on_in_data
    for part, spoil in {
        "place in the data": lambda trainer: setattr(trainer.stream, "start", 0),
        "random numbers of steps": lambda trainer: setattr(trainer._trainer, "random_key", None),
        "average": lambda trainer: trainer.average.n_averaged.zero_(),
    }.items():

        def restore_in_part(trainer, before, spoil=spoil):
            restore(trainer, before)
            spoil(trainer)

        monkeypatch.setattr(Trainer, "_go_on_in_data", restore_in_part)
        assert len(compare(13)) > 50, part

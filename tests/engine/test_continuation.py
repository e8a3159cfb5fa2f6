"""A run that was interrupted ends as it would have ended without."""

import itertools
import shutil
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from processes import run_in_two_processes

from benchmarks.resume import RANDOM, find_differences, make_options, start, train_with_kills, wait
from d2_contrast.engine import Trainer, setup
from d2_contrast.engine.train_step import TrainStep, batch_files
from d2_contrast.visualize import read_metrics

LENGTH = {"SOLVER.MAX_ITER": 21, "SOLVER.CHECKPOINT_PERIOD": 7, "SOLVER.MAX_TO_KEEP": 0}
LENGTH |= {"MODEL.TIMM.NAME": "test_resnet", "INPUT.CROP.SIZE": [32, 32]}
SHORT = {"SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 3}
CASES = {
    "average, accumulation": {"SOLVER.EMA.ENABLED": True, "SOLVER.ACCUMULATION_STEPS": 2},
    "bfloat16": SHORT | {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16", "SOLVER.OPTIMIZER": "SGD"},
    # The gradients of iteration 2, after which the checkpoint is, are the last that are logged.
    "balance": {**SHORT, "SOLVER.MAX_ITER": 4, "MODEL.CONTRAST.BALANCE.LOG_PERIOD": 2},
    "memory": SHORT
    | {
        "MODEL.CONTRAST.MEMORY.METHOD": "pixels+regions",
        "MODEL.CONTRAST.MEMORY.PIXELS": 50,
        "MODEL.CONTRAST.CROSS_SCALE_PAIRS": [],
        "MODEL.CONTRAST.CROSS_SCALE_WEIGHTS": [],
    },
    "float16": SHORT | {"SOLVER.AMP.ENABLED": True, "SOLVER.NON_FINITE": "skip", "SOLVER.EMA.ENABLED": True},
}


def flat(options: dict) -> list:
    return [part for pair in options.items() for part in pair]


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


def go_on(cfg, seen: Path | None = None) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    if seen is not None:
        note_files(trainer._trainer, seen)
    trainer.train()


def note_files(step: TrainStep, path: Path) -> None:
    """Write the names of the images of each step to a file, a line for a step."""
    run_step = step.run_step

    def run() -> None:
        run_step()
        with open(path, "a") as file:
            file.write(" ".join(Path(name).name for name in batch_files(step.batches)) + "\n")

    step.run_step = run


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
            return find_differences(folder, whole)

        return compare

    return start


@pytest.mark.parametrize("case", ["bfloat16", "float16", "memory", "balance"])
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


def test_a_run_that_fails_within_a_step(make_cfg, tmp_path):
    """What the forward passes of that step have changed is not in the checkpoint: statistics, memory."""
    options = flat(RANDOM | LENGTH | CASES["memory"] | {"SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.CHECKPOINT_PERIOD": 9})
    Trainer(make_cfg(*options)).train()
    whole, folder = tmp_path / "whole", tmp_path / "output"
    folder.rename(whole)
    trainer = Trainer(make_cfg(*options))
    model = trainer._trainer.model
    forward, passes = model.forward, itertools.count(1)

    def fail(batch):
        losses = forward(batch)
        if next(passes) == 2 * 2 + 2:  # the second batch of the third iteration
            raise RuntimeError("a fault after the losses")
        return losses

    model.forward = fail
    with pytest.raises(RuntimeError, match="a fault after the losses"):
        trainer.train()
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    go_on(make_cfg(*options, resume=True))
    # The log has another line, of the last complete step.
    assert [found for found in find_differences(folder, whole) if not found.startswith("log: ")] == []


def test_a_run_that_is_killed_again_and_again(tmp_path):
    options = make_options(tmp_path, iterations=12, period=1, TEST__EVAL_PERIOD=6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    wait(start(options, whole), whole)
    # Less than the run takes, so that it is not over before the last kill.
    counted = train_with_kills(options, killed, kills=3, seconds=0.4 * (time.monotonic() - began))
    assert counted["kills"] == 3 and counted["half written"] >= 1
    assert find_differences(whole, killed) == []


def test_the_place_in_the_data_counts_images(make_cfg, run_folder, logged):
    """After two iterations of two images each; the seed is that of the run."""
    cfg = make_cfg("SOLVER.EMA.ENABLED", True, "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 3, resume=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    seed = torch.load(run_folder / "model_final.pth", weights_only=True)["trainer"]["data"]["seed"]
    assert trainer.stream.start == 4 and trainer.stream.seed == trainer.seed == seed
    said = logged()
    assert "Going on in the data after 4 images" in said
    assert "3 images in a step, 2 before: steps hold other images, from the same place in the data on" in said
    trainer.train()
    state = torch.load(run_folder / "model_final.pth", weights_only=True)["trainer"]["data"]
    assert state["position"] == 4 + 2 * 3


def train_twice(rank: int, options: list[str], config: str, folder: Path) -> None:
    """In two processes: train to the end, and go on once more from a checkpoint before it."""
    comm.create_local_process_group(2)
    for resume in (False, True):
        if resume and rank == 0:
            shutil.copytree(folder, folder.with_name("whole"))
            rewind(folder, 2)
        comm.synchronize()
        cfg = setup(Namespace(config_file=config, opts=options, eval_only=False, resume=resume))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        note_files(trainer._trainer, folder / f"seen_{rank}")
        trainer.train()


def test_two_processes(make_cfg, write_config, tmp_path, logged):
    options = [*map(str, flat(RANDOM | LENGTH | SHORT)), "MODEL.CONTRAST.GATHER", "True"]
    folder, whole = tmp_path / "output", tmp_path / "whole"
    run_in_two_processes(train_twice, tmp_path, [*options, "OUTPUT_DIR", str(folder)], write_config(), folder)
    losses = [read_metrics(str(path / "metrics.json"))["total_loss"][1] for path in (folder, whole)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-6)
    assert len(losses[0]) == 1
    assert find_differences(folder, whole) == []

    # One of them goes on alone, a half of each batch after the other.
    rewind(folder, 2)
    go_on(make_cfg(*options, "SOLVER.MAX_IMS_PER_PROCESS", 1, resume=True), folder / "seen")
    said = logged()
    assert "A step takes 2 batches of 1 images" in said and "Going on in the data after 6 images" in said
    assert "1 images in a batch, 2 before" in said
    assert "1 processes, 2 before: batches hold the same images, but" in said
    of_two = [(whole / f"seen_{rank}").read_text().splitlines() for rank in range(2)]
    alone = (folder / "seen").read_text().splitlines()
    assert [sorted(step.split()) for step in alone] == [sorted(step) for step in zip(*of_two)][3:]

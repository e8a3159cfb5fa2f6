"""Runs that are asked to end, or end by a fault: what was trained is saved first."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from processes import run_in_two_processes

from d2_contrast.data import read_image
from d2_contrast.engine import Trainer
from d2_contrast.engine.stop import SIGNALS, Stopped, StopRequests
from d2_contrast.evaluation import ConfusionEvaluator

BASE = "uper_r18.yaml"
LONG = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 100]


class At(HookBase):
    """Do something after a given iteration."""

    def __init__(self, iteration: int, action):
        self.iteration, self.action = iteration, action

    def after_step(self):
        if self.trainer.iter == self.iteration:
            self.action()


def last_of(trainer: Trainer) -> dict:
    return torch.load(trainer.checkpointer.last_checkpoint(), weights_only=True)


def interrupt(number: int):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture
def heeded():
    """No signal is ignored, as some are where the tests themselves run in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_first(make_cfg, number, heeded, logged):
    before = [signal.getsignal(n) for n in SIGNALS]
    trainer = Trainer(make_cfg(*LONG, base=BASE))
    trainer.register_hooks([At(1, interrupt(number))])
    with pytest.raises(Stopped) as stopped:
        trainer.train()
    assert stopped.value.code == 128 + number
    assert trainer.checkpointer.last_checkpoint().endswith("model_0000001.pth")
    assert "model_0000001.pth is saved: go on with --resume" in logged()
    weights = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    torch.testing.assert_close(last_of(trainer)["model"], weights, rtol=0, atol=0)
    assert before == [signal.getsignal(n) for n in SIGNALS]

    again = Trainer(make_cfg(*LONG, base=BASE, resume=True))
    again.resume_or_load(resume=True)
    assert again.start_iter == 2 and again.scheduler.last_epoch == 2


def test_an_exception_saves_the_iterations_that_are_complete(make_cfg, monkeypatch, logged):
    batches = list(zip(range(3), Trainer.build_train_loader(make_cfg(base=BASE))))

    def loader(cls, cfg):
        yield from (batch for _, batch in batches)
        raise OSError("a.png: cannot read this image")

    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(loader))
    trainer = Trainer(make_cfg(*LONG, "SOLVER.MAX_TO_KEEP", 2, base=BASE))
    folder = Path(trainer.cfg.OUTPUT_DIR)
    for number in range(2):  # of earlier faults
        (folder / f"model_{number:07d}.pth").write_text("x")
        os.utime(folder / f"model_{number:07d}.pth", (number, number))
    with pytest.raises(OSError, match="a.png: cannot read"):
        trainer.train()
    saved = last_of(trainer)
    assert saved["iteration"] == saved["trainer"]["iteration"] == 2
    assert "model_0000002.pth is saved" in logged()
    assert sorted(path.name for path in folder.glob("*.pth")) == ["model_0000001.pth", "model_0000002.pth"]


def test_nothing_to_save(make_cfg, monkeypatch, logged):
    trainer = Trainer(make_cfg(*LONG, base=BASE))
    monkeypatch.setattr(trainer, "run_step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "Nothing was trained since; the last checkpoint is none" in logged()
    assert not list(Path(trainer.cfg.OUTPUT_DIR).glob("*.pth"))


def test_weights_that_are_updated_in_part_are_not_saved(make_cfg, monkeypatch, logged):
    trainer = Trainer(make_cfg(*LONG, base=BASE))

    def break_off():
        trainer.optimizer.register_step_post_hook(lambda *_: 1 / 0)

    trainer.register_hooks([At(1, break_off)])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "weights are updated in part" in logged() and not list(Path(trainer.cfg.OUTPUT_DIR).glob("*.pth"))


def test_a_full_disk_leaves_earlier_checkpoints(make_cfg, logged):
    trainer = Trainer(make_cfg("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, base=BASE))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer.register_hooks([At(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1])))])
    try:
        with pytest.raises(OSError, match=r"model_0000003.pth: cannot write this file \(File too large\)"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Nothing is saved (" in logged() and trainer.checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    assert sorted(path.name for path in Path(trainer.cfg.OUTPUT_DIR).glob("model_*")) == ["model_0000001.pth"]


@pytest.mark.parametrize(
    ("period", "last"), [(2, "model_0000001.pth"), (0, "model_final.pth")], ids=["within", "after"]
)
def test_a_signal_while_evaluating(make_cfg, monkeypatch, period, last):
    """It ends at the next image, without results; after training all is saved already."""
    images = []

    def process(self, inputs, outputs):
        images.append(inputs)
        interrupt(signal.SIGTERM)()

    monkeypatch.setattr(ConfusionEvaluator, "process", process)
    trainer = Trainer(
        make_cfg("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", period, base=BASE)
    )
    with pytest.raises(Stopped):
        trainer.train()
    assert len(images) == 1 and trainer.checkpointer.last_checkpoint().endswith(last)
    assert not list(Path(trainer.cfg.OUTPUT_DIR).glob("inference/*/*results.json"))


def test_how_many_checkpoints_are_kept(make_cfg):
    trainer = Trainer(make_cfg("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_TO_KEEP", 2, base=BASE))
    folder = Path(trainer.cfg.OUTPUT_DIR)
    folder.mkdir(exist_ok=True)
    for name in ("model_0000099.pth", "model_best.pth", "mine.pth"):  # of an earlier part of the run
        (folder / name).write_text("x")
        os.utime(folder / name, (1, 1))
    trainer.train()
    kept = sorted(path.name for path in folder.glob("*.pth"))
    assert kept == ["mine.pth", "model_0000003.pth", "model_best.pth", "model_final.pth"]


def block(signals: list[float]) -> tuple[int, float]:
    """Exit code and seconds of a process that waits in the operating system and gets signals after these seconds."""
    child = os.fork()
    if not child:
        with StopRequests():
            mutex = torch.multiprocessing.get_context("fork").Lock()
            mutex.acquire()
            mutex.acquire()  # as where a process waits for another that has died
    start = time.monotonic()
    for moment in signals:
        time.sleep(max(0.0, start + moment - time.monotonic()))
        os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


def test_a_second_signal_ends_at_once():
    """Also where the process does not come back to Python; what follows at once is the same request."""
    code, seconds = block([0.5, 0.6, 2.0])
    assert code == 128 + signal.SIGTERM and 1.9 < seconds < 5


def stop_together(rank: int, folder: Path) -> None:
    with StopRequests() as requests:
        for iteration in range(100):
            if rank == 1 and iteration == 3:
                interrupt(signal.SIGTERM)()
            try:
                requests.check()
            except Stopped as stopped:
                (folder / str(rank)).write_text(f"{iteration} {stopped.code}")
                return


def test_processes_stop_together(tmp_path):
    """One of them is asked."""
    run_in_two_processes(stop_together, tmp_path, tmp_path)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "3 143"


def test_a_signal_to_the_launcher(write_config, tmp_path, pytestconfig):
    """It reaches the processes of the job, one of which saves; then all end."""
    output = tmp_path / "output"
    command = [sys.executable, str(pytestconfig.rootpath / "train_net.py"), "--num-gpus", "2", "--dist-url", "auto"]
    options = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000"]
    options += ["SOLVER.IMS_PER_BATCH", "4"]
    metrics = output / "metrics.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--config-file", write_config(base=BASE), *options], stdout=log, stderr=log, env=environment
        )
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    assert code == 128 + signal.SIGTERM, (tmp_path / "log").read_text()[-3000:]
    assert torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)["iteration"] >= 19
    assert not (output / "run.lock").exists() and "Traceback" not in (tmp_path / "log").read_text()


def test_ignored_signals_stay_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as requests:
            interrupt(signal.SIGHUP)()
            requests.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_faults_are_in_the_log(make_cfg, monkeypatch, logged):
    """A mistake as a sentence, a bug with its traceback."""
    faults = {"none.png: no such image": lambda: read_image("none.png"), "KeyError: 'x'": lambda: {}["x"]}
    for says, fault in faults.items():
        trainer = Trainer(make_cfg(*LONG, base=BASE))
        monkeypatch.setattr(trainer, "run_step", fault)
        with pytest.raises((OSError, KeyError)):
            trainer.train()
        assert says in logged()
    assert logged().count("Traceback") == 1

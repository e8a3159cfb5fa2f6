import json
import os
import signal
import socket
import time
from argparse import Namespace

import pytest

from d2_contrast.engine import Trainer, evaluate, setup, train
from d2_contrast.engine.run_folder import (
    LOCK,
    FolderInUseError,
    RunLock,
    check_free,
    check_nothing_lost,
    prepare_folder,
    process_start,
)


@pytest.fixture
def holder(tmp_path):
    """The number of another process that has the lock of ``tmp_path``."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with RunLock(str(tmp_path)):
            os.write(write, b"held")
            time.sleep(60)
            os._exit(0)
    assert os.read(read, 4) == b"held"
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_one_run_at_a_time(tmp_path, holder):
    with pytest.raises(FolderInUseError, match=rf"{tmp_path} is in use .*process {holder} on {socket.gethostname()}"):
        RunLock(str(tmp_path)).__enter__()
    for overwrite in (False, True):
        with pytest.raises(FolderInUseError, match="is in use by a run that goes on"):
            prepare_folder(str(tmp_path), resume=not overwrite, overwrite=overwrite)
    (tmp_path / "model_0000001.pth.partial").write_text("half")
    os.kill(holder, signal.SIGKILL)
    os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / LOCK).read_text()  # left behind, and recognised as that
    with RunLock(str(tmp_path)), RunLock(str(tmp_path / "another")):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert not (tmp_path / "model_0000001.pth.partial").exists()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("changes", "is_free"),
    [
        ({}, False),
        ({"started": "another boot 123"}, True),  # its number was given to another process
        ({"pid": 2**22 + 1}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "age": 3600}, True),
        (None, True),
    ],
    ids=["alive", "number used again", "ended", "other machine", "other machine, long silent", "unreadable"],
)
def test_what_the_file_says_counts_where_locks_do_not_work(tmp_path, monkeypatch, changes, is_free):
    """As on file systems that have none, or do not share them between machines."""

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    parent = os.getppid()
    owner = {"host": socket.gethostname(), "pid": parent, "started": process_start(parent), "since": "today"}
    (tmp_path / LOCK).write_text("{" if changes is None else json.dumps({**owner, **changes}))
    if changes and "age" in changes:
        os.utime(tmp_path / LOCK, (time.time() - changes["age"],) * 2)
    if is_free:
        with RunLock(str(tmp_path)):
            pass
    else:
        with pytest.raises(FolderInUseError, match="since today"):
            RunLock(str(tmp_path)).__enter__()


@pytest.mark.parametrize("trace", ["last_checkpoint", "metrics.json", "model_final.pth", "model_0000999.pth"])
def test_what_is_a_run(tmp_path, trace):
    for name in ("config.yaml", "log.txt", "resnet50.pth", "inference"):
        (tmp_path / name).write_text("x")
    (tmp_path / "metrics.json").write_text("")
    check_free(str(tmp_path), resume=False)
    (tmp_path / trace).write_text("x")
    check_free(str(tmp_path), resume=True)
    with pytest.raises(FolderInUseError, match=rf"{tmp_path} holds a run already \({trace}\): .*--resume.*--overwrite"):
        check_free(str(tmp_path), resume=False)


def test_a_run_never_starts_over_another(write_config, run_folder):
    files = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file() and path.name != "log.txt"}

    def start(*opts, **flags):
        opts = ["OUTPUT_DIR", str(run_folder), *opts]
        return setup(Namespace(config_file=write_config(), opts=opts, **{"eval_only": False, **flags}))

    with pytest.raises(FolderInUseError, match="holds a run already"):
        start()
    with pytest.raises(ValueError, match="--resume goes on .* give one of them"):
        start(resume=True, overwrite=True)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS .*model_final.pth lies in OUTPUT_DIR"):
        start("MODEL.WEIGHTS", str(run_folder / "model_final.pth"), overwrite=True)
    cfg = start(eval_only=True)
    with pytest.raises(FolderInUseError, match="holds a run already"):
        train(cfg)  # from Python, too
    assert {path: path.read_bytes() for path in files} == files

    for i in (1, 2):
        start(overwrite=True)
        moved = run_folder.with_name(f"{run_folder.name}.old-{i}")
        assert (moved / "model_final.pth").read_bytes() == files[run_folder / "model_final.pth"]
        assert not (run_folder / "model_final.pth").exists()
        (run_folder / "model_final.pth").write_bytes((moved / "model_final.pth").read_bytes())


def test_the_working_folder_is_not_moved_aside(write_config, run_folder, monkeypatch):
    monkeypatch.chdir(run_folder / "inference")
    with pytest.raises(FolderInUseError, match=r"OUTPUT_DIR \.\. is the working folder or holds it"):
        prepare_folder("..", resume=False, overwrite=True)
    assert (run_folder / "model_final.pth").is_file()


@pytest.mark.parametrize(
    ("name", "text", "is_lost"),
    [
        ("model_best.safetensors", "x", True),
        ("metrics.json", '{"iteration": 9, "lr": 0.1}\n', True),
        ("metrics.json", '{"iteration": 8, "lr": 0.1}\n{', False),  # killed before the first checkpoint
        ("log.txt", "x", False),
    ],
)
def test_results_without_a_checkpoint_are_not_written_over(tmp_path, name, text, is_lost):
    (tmp_path / name).write_text(text)
    if not is_lost:
        return check_nothing_lost(str(tmp_path), checkpoint_period=10)
    with pytest.raises(FolderInUseError, match=f"holds a run \\({name}.*but no checkpoint to go on from"):
        check_nothing_lost(str(tmp_path), checkpoint_period=10)


def test_resuming_where_the_checkpoints_are_gone(make_cfg, run_folder):
    for path in (*run_folder.glob("*.pth"), run_folder / "last_checkpoint"):
        path.unlink()
    before = (run_folder / "metrics.json").read_bytes()
    with pytest.raises(FolderInUseError, match="but no checkpoint to go on from"):
        Trainer(make_cfg("SOLVER.CHECKPOINT_PERIOD", 1, resume=True)).resume_or_load(resume=True)
    assert (run_folder / "metrics.json").read_bytes() == before


def test_an_evaluation_leaves_what_training_has_left(make_cfg, run_folder):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file() and path.name != "log.txt"}
    opts = ["MODEL.WEIGHTS", run_folder / "model_final.pth", "SOLVER.EMA.ENABLED", True, "VISUALIZE.NUM_IMAGES", 1]
    flipped = ["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [1.0]]
    evaluate(make_cfg(*opts, *flipped, eval_only=True))
    assert {path: path.read_bytes() for path in before} == before
    (plain,) = run_folder.glob("inference/*_val")
    (folder,) = run_folder.glob("inference/*_flip")
    for name in ("sem_seg_results.json", "config.yaml", "predictions.png", "confusion.png"):
        assert (folder / name).is_file(), name
    assert not (plain / "predictions.png").exists() and not (run_folder / "predictions.png").exists()

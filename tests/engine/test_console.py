"""What is shown on the terminal, and what is in log.txt."""

import logging
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from d2_contrast.engine.console import (
    CONSOLE,
    Console,
    FirstIteration,
    ProgressWriter,
    start_logging,
    without_warnings_of,
)
from d2_contrast.errors import in_plain_words


@pytest.fixture
def log(tmp_path):
    start_logging(str(tmp_path))
    yield tmp_path / "log.txt"
    logging.captureWarnings(False)


class Terminal:
    """Makes sys.stdout of a test look like a terminal of some width."""

    def __init__(self, monkeypatch, width):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))


def test_the_terminal_shows_what_matters_and_the_log_everything(log, capsys):
    logging.getLogger("d2_contrast.engine.run").info("shown")
    logging.getLogger("d2_contrast.engine.setup").debug("a long config")
    logging.getLogger("detectron2.data.build").info("detail of a library")
    logging.getLogger("fvcore.common.checkpoint").warning("missing: x")
    logging.getLogger("detectron2.evaluation.testing").error("failed")
    assert capsys.readouterr().out.splitlines() == ["shown", "Warning: missing: x", "Error: failed"]
    for handler in logging.getLogger("d2_contrast").handlers:
        handler.flush()
    text = log.read_text()
    for line in ("shown", "a long config", "detail of a library", "missing: x", "failed"):
        assert line in text
    assert "\x1b" not in text


def test_warnings_of_python_are_logged_in_one_line(log, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("something is old", FutureWarning, stacklevel=1)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and out[0].endswith("FutureWarning: something is old") and out[0].startswith("Warning: ")


def test_names_of_files_that_are_not_utf8_are_logged(log, capsys):
    """Given to our handlers themselves, and so not to pytest's, whose reports are UTF-8."""
    message = logging.makeLogRecord({"levelno": logging.WARNING, "msg": "Skipped: gr\udcfcn.jpg"})
    with in_plain_words():
        for handler in logging.getLogger("d2_contrast").handlers:
            if type(handler) in (logging.StreamHandler, Console):
                handler.handle(message)
                handler.flush()
    assert log.read_text("utf-8").endswith("Skipped: gr\\udcfcn.jpg\n") and capsys.readouterr().err == ""


def test_logging_again_shows_each_message_once(log, capsys, tmp_path):
    start_logging(str(tmp_path / "other"))
    logging.getLogger("d2_contrast.x").info("once")
    assert capsys.readouterr().out == "once\n"


def test_progress_is_one_line_of_a_terminal(monkeypatch, capsys):
    Terminal(monkeypatch, 30)
    console = Console()
    console.progress("iteration 20 of 1,800", "0:01:00 left", "1 s")
    console.progress("iteration 40 of 1,800", "0:00:50 left")
    console.write("a message")
    lines = capsys.readouterr().out
    assert lines == "iteration 20 of 1,800  1 s\r\x1b[Kiteration 40 of 1,800\r\x1b[Ka message\n"


def test_a_line_is_cut_to_a_narrow_terminal(monkeypatch, capsys):
    Terminal(monkeypatch, 11)
    Console().progress("iteration 20 of 1,800")
    assert capsys.readouterr().out == "iteration "


def test_progress_in_a_log_is_rare(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = Console()
    for seconds in (0, 10, 59, 61, 70):
        now[0] = 1000.0 + seconds
        console.progress(f"at {seconds}", "x")
    assert capsys.readouterr().out == "at 0  x\nat 61  x\n"


def test_progress_of_an_evaluation(monkeypatch, capsys, log):
    Terminal(monkeypatch, 80)
    message = (
        "Inference done 11/200. Dataloading: 0.0018 s/iter. Inference: 0.02 s/iter. Total: 0.02 s/iter. ETA=0:00:05"
    )
    logging.getLogger("detectron2.evaluation.evaluator").info(message)
    CONSOLE.write("done")
    assert capsys.readouterr().out == "evaluating: 11 of 200 images, 0:00:05 left\r\x1b[Kdone\n"


def test_progress_of_training(capsys):
    writer = ProgressWriter(100, Console())
    with EventStorage(49) as storage:
        storage.put_scalars(total_loss=1.5, loss_sem_seg=1.2, loss_contrast_p2=0.2, loss_contrast_p5=0.1, lr=0.01)
        storage.put_scalar("time", 2.0)
        writer.write()
        line = capsys.readouterr().out
        assert line == (
            "iteration 50 of 100  0:01:40 left  loss 1.500  contrastive 0.300  2.00 s/iteration  rate 0.01\n"
        )
        storage.iter = 100
        writer.write()
    assert capsys.readouterr().out == ""


def test_the_first_iteration_is_shown_at_once(monkeypatch, capsys):
    Terminal(monkeypatch, 80)
    hook = FirstIteration()
    hook.trainer = SimpleNamespace(start_iter=1200, max_iter=2400)
    for hook.trainer.iter in range(1200, 1220):
        hook.after_step()
    assert capsys.readouterr().out == "iteration 1,201 of 2,400"


def test_warnings_of_a_library_are_left_out(caplog):
    logger = logging.getLogger("some.library")
    with without_warnings_of("some.library"):
        logger.warning("no GPU")
    logger.warning("else")
    assert [record.message for record in caplog.records] == ["else"]


def test_importing_detectron2_warns_of_nothing():
    code = "import d2_contrast.modeling, d2_contrast.data, d2_contrast.engine"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")

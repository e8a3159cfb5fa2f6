import runpy
import subprocess
from pathlib import Path

import pytest

main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "demo.py"))["main"]


@pytest.fixture
def calls(monkeypatch):
    """Commands that the demo runs, and the exit codes that they have in turn."""
    commands, codes = [], []
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or codes.pop(0))
    return commands, codes


def test_trains_both_and_reports_on_them(calls, tmp_path):
    commands, codes = calls
    codes += [0, 3]
    assert main(["--output", str(tmp_path), "SOLVER.MAX_ITER", "4"]) == 3
    train, report = commands
    assert train[1:3] == ["-m", "d2_contrast.ablate"] and train[-2:] == ["SOLVER.MAX_ITER", "4"]
    assert report[1:3] == ["-m", "d2_contrast.report"]
    baseline, run = (Path(folder) for folder in report[3:5])
    assert report[5:] == ["--names", "cross entropy", "with the losses", "--output", str(tmp_path)]
    assert baseline.parent == run.parent == tmp_path
    assert baseline.name.startswith("cross-entropy_seed1_") and run.name.startswith("with-the-losses_seed1_")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_where_the_processor_has_it(calls, tmp_path, monkeypatch, native):
    commands, codes = calls
    codes += [0, 0]
    monkeypatch.setitem(main.__globals__, "has_native_bfloat16", lambda: native)
    assert main(["--output", str(tmp_path)]) == 0
    assert ("bfloat16" in commands[0]) == native


def test_what_is_not_trained_is_not_compared(calls, tmp_path):
    commands, codes = calls
    codes.append(130)
    assert main(["--output", str(tmp_path)]) == 130 and len(commands) == 1

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from d2_contrast import ablate
from d2_contrast.ablation import AblationError, Runner
from d2_contrast.data.datasets.shapes_drawing import CLASSES as SHAPES

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests/ablation/fake_train.py"

SPEC = """
seeds: [1, 2]
baseline: plain
overrides: {SOLVER.MAX_ITER: 4}
rows:
  - {name: plain, config: "CONFIG", overrides: {SOLVER.MOMENTUM: 0.0}}
  - {name: ours, config: "CONFIG", overrides: {SOLVER.MOMENTUM: 0.5}}
"""


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The verb with a stand-in for a training, in an empty folder with ``spec.yaml``."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("CONFIG", str(ROOT / "configs/shapes/uper_r18.yaml")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner.__init__, "__defaults__", ((sys.executable, str(FAKE)),))
    monkeypatch.setattr("d2_contrast.ablation.runner.POLL_SECONDS", 0.02)
    return ablate.main


def test_run_and_table(main, capsys):
    assert main(["spec.yaml", "--jobs", "2", "--plot", "--results", "kept"]) == 0
    out, err = capsys.readouterr()
    assert "2 rows, 2 seeds (1, 2), 4 runs of 16 iterations in all: 4 to do." in err
    assert "+5.00 [+5.00, +5.00]" in out and out.startswith("# spec\n")
    folder = Path("output/ablations/spec")
    assert (folder / "spec.md").read_text() == out.removesuffix("\n")
    for name in ("spec.csv", "spec.tex", "spec.png"):
        assert (folder / name).stat().st_size > 200 and str(folder / name) in err
    assert len(list(Path("kept").glob("*.json"))) == 4

    assert main(["spec.yaml", "--output", "elsewhere", "--results", "kept", "--collect-only"]) == 0
    assert capsys.readouterr().out == out
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["spec.csv", "spec.md", "spec.tex"]


def test_plan_runs_nothing(main, capsys):
    assert main(["--plan-only", "spec.yaml", "SOLVER.MAX_ITER", "9"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "36 iterations" in err and "Overrides of all rows: SOLVER.MAX_ITER 9" in err
    assert not Path("output").exists()


def test_a_plan_tells_long_values_apart(main, capsys):
    folder, spec = "/data/" + "pretrained/" * 6, Path("spec.yaml")
    for momentum, name in (("0.0", "a.pth"), ("0.5", "b.pth")):
        weights = f"SOLVER.MOMENTUM: {momentum}, MODEL.WEIGHTS: {folder}{name}"
        spec.write_text(spec.read_text().replace(f"SOLVER.MOMENTUM: {momentum}", weights))
    assert main(["--plan-only", "spec.yaml"]) == 0
    shared, *table = capsys.readouterr().err.splitlines()
    assert shared == "Overrides of all rows: SOLVER.MAX_ITER 4"
    assert [line.split("/")[-1].split()[0] for line in table if "MODEL.WEIGHTS" in line] == ["a.pth", "b.pth"]


def test_collecting_nothing(main, capsys):
    assert main(["spec.yaml", "--collect-only", "--plot"]) == 0
    assert "0 of 4 runs finished" in capsys.readouterr().out


def test_a_row_without_labels_to_test_on_ends_before_it_starts(main, capsys, forget_datasets):
    unlabelled = [{"name": "garden_new", "images": "garden", "classes": list(SHAPES)}]
    overrides = ["DATASETS.FOLDERS", str(unlabelled), "DATASETS.TEST", "('garden_new',)"]
    with pytest.raises(SystemExit, match="2"):
        main(["spec.yaml", *overrides])
    assert "row 'plain' is tested on garden_new alone, without labels" in capsys.readouterr().err
    assert not Path("output").exists()
    assert main(["spec.yaml", "--collect-only", *overrides]) == 0
    overrides[-1] = "('garden_new', 'shapes_val')"
    assert main(["spec.yaml", "--plan-only", *overrides]) == 0


def test_failures_come_last(main, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "ours_seed2")
    assert main(["spec.yaml"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 2" in out
    end = err.split("Written: ")[1]
    assert "Failed runs: 1." in end and re.search(r"ours_seed2_\w+: failed with exit code 3", end)
    assert end.endswith("    OSError: no such image: 7.png\n\n")


def test_printed_commands_work_from_anywhere(main, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data sets")
    assert main(["spec.yaml", "--print-commands", "--threads", "3", "--gpus-per-run", "2", "SOLVER.MAX_ITER", "3"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 4 and not Path("output").exists()
    for command in commands:
        cd, folder, also, env, *words = shlex.split(command)
        assert (cd, folder, also, env) == (
            "cd",
            str(tmp_path),
            "&&",
            "env",
        ) and "DETECTRON2_DATASETS=/data sets" in words
        start = words.index("d2_contrast.ablate")
        assert words[start - 2 : start] == [sys.executable, "-m"]
        monkeypatch.chdir(folder)
        assert main(words[start + 1 :]) == 0
        monkeypatch.chdir("/")
    assert capsys.readouterr().out == ""  # a single run makes no table
    monkeypatch.chdir(tmp_path)
    calls = [json.loads(path.read_text()) for path in Path("output/ablations/spec").glob("*/calls.jsonl")]
    assert [(call["processes"], call["OMP_NUM_THREADS"]) for call in calls] == [(2, "3")] * 4
    assert main(["spec.yaml", "--print-commands", "SOLVER.MAX_ITER", "3"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "4 finished" in err


def test_runs_that_rows_share_count_once(main, capsys):
    spec = Path("spec.yaml")
    spec.write_text(f"{spec.read_text()}{spec.read_text().splitlines()[-1].replace('ours', 'again')}\n")
    assert main(["spec.yaml", "--print-commands"]) == 0
    out, err = capsys.readouterr()
    names = [re.search(r" --run (\w+)_seed(\d)", command).groups() for command in out.splitlines()]
    assert names == [("plain", "1"), ("ours", "1"), ("plain", "2"), ("ours", "2")]
    assert "3 rows, 2 seeds (1, 2), 4 runs of 16 iterations in all: 4 to do." in err
    name = re.search(r" --run (ours_seed1_\w+)", out)[1].replace("ours", "again")
    assert main(["spec.yaml", "--run", name]) == 0
    assert main(["spec.yaml", "--collect-only"]) == 0
    assert "3 rows, 2 seeds: 1 of 4 runs finished." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "error: none.yaml: no such config file, and no config of d2_contrast has this name"),
        (["spec.yaml", "--run", "ours_seed1_0"], "error: spec.yaml has no run 'ours_seed1_0': was it changed after"),
        (
            ["spec.yaml", "SOLVER.MAXITER", "3"],
            "error: spec.yaml: row 'plain': Non-existent key: SOLVER.MAXITER",
        ),
        (["spec.yaml", "--gpus", "2"], "torch can use 1 GPUs here"),
        (["spec.yaml", "--gpus", "1", "--jobs", "2"], "the GPUs decide how many runs there are at a time"),
        (["spec.yaml", "--gpus-per-run", "2", "--jobs", "2"], "say by --gpus how many there are"),
    ],
)
def test_mistakes(main, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
    assert not list(Path().glob("output/ablations/spec/*/attempt.json"))


@pytest.mark.parametrize("option", ["--jobs", "--threads", "--gpus", "--gpus-per-run"])
def test_numbers_start_at_one(main, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["spec.yaml", option, "0"])
    assert f"{option} is 0: expected 1 or more" in capsys.readouterr().err


def test_slots_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def slots(*args):
        return [(slot.threads, slot.processes, slot.gpus) for slot in ablate.make_slots(*args)]

    assert slots(3, None, None, 1) == [(5, 1, None)] * 3
    assert slots(20, None, None, 1) == [(1, 1, None)] * 20
    assert slots(2, 7, None, 1) == [(7, 1, None)] * 2
    assert slots(1, None, None, 2) == [(8, 2, None)]  # the queue says which
    assert slots(1, None, 4, 2) == [(4, 2, ("0", "1")), (4, 2, ("2", "3"))]
    with pytest.raises(AblationError, match="--gpus 3 is no multiple of --gpus-per-run 2"):
        slots(1, None, 3, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8,9")
    assert slots(1, None, 2, 1) == [(8, 1, ("5",)), (8, 1, ("7",))]

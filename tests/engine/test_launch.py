import os
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from d2_contrast.config import load_config
from d2_contrast.engine import evaluate, launch, parse_arguments, setup, train


def main(args: Namespace) -> None:
    cfg = setup(args)
    evaluate(cfg, resume=args.resume) if args.eval_only else train(cfg, resume=args.resume)


MISTAKES = {
    "positional config": (
        ["configs/shapes/uper_r18.yaml"],
        "configs/shapes/uper_r18.yaml stands in the place of a key",
    ),
    "late option": (["SOLVER.MAX_ITER", "3", "--resume"], "--resume stands among keys and values"),
    "equals": (["SOLVER.MAX_ITER=3"], "keys and values are separate, as in SOLVER.MAX_ITER 3"),
    "no value": (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
    "unknown key": (["LAMBDA", "3"], "Non-existent key: LAMBDA"),
    "wrong type": (
        ["SOLVER.MAX_ITER", "x"],
        "command line: SOLVER.MAX_ITER is x: expected a whole number of at least 1",
    ),
    "no config": (["--num-machines", "1"], "DATASETS.TRAIN is empty: .* --config-file"),
    "no port": (["--num-machines", "2"], "--dist-url is auto, for one machine alone: expected .* tcp://node0:29500"),
    "no file": (["--config-file", "nofile.yaml"], "nofile.yaml: "),
    "unknown dataset": (["DATASETS.TRAIN", "('moon',)"], "DATASETS.TRAIN: dataset 'moon' is not registered"),
    "unknown backbone": (["MODEL.BACKBONE.NAME", "Moon"], "MODEL.BACKBONE.NAME: 'Moon' is not registered; .* Swin"),
    "no weights": (["--eval-only", "--config-file", "TINY"], "--eval-only needs weights"),
    "missing weights": (["--config-file", "TINY", "MODEL.WEIGHTS", "none.pth"], "none.pth: no such file of weights"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_on_the_command_line(case, write_config, tmp_path, monkeypatch, capsys):
    arguments, expected = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    config = write_config()
    with pytest.raises(SystemExit) as ended:
        launch(main, parse_arguments([config if part == "TINY" else part for part in arguments]))
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(lines) == 1
    assert re.search(expected, lines[0]), lines[0]


def test_no_arguments(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments([])
    help = capsys.readouterr().err
    assert ended.value.code == 2 and "--config-file" in help and "--overwrite" in help


def fail(args: Namespace) -> None:
    load_config("", ["SEED"])


def test_processes_that_fail_alike_speak_once(pytestconfig):
    code = "import test_launch as t; t.launch(t.fail, t.parse_arguments(['--num-gpus', '2']))"
    environment = {**os.environ, "PYTHONPATH": f"{pytestconfig.rootpath}:{pytestconfig.rootpath / 'tests/engine'}"}
    environment.update(CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.count("error: SEED has no value") == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize(("device", "gpus_hidden"), [("cpu", True), ("cuda", False)])
def test_processes_follow_the_device_and_not_the_machine(device, gpus_hidden, monkeypatch):
    """Detectron2 takes NCCL, and a GPU for each process, wherever a process sees one."""
    seen = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    module = sys.modules["d2_contrast.engine.launch"]
    monkeypatch.setattr(module, "spawn", lambda *_, **__: seen.update(gpus=os.environ["CUDA_VISIBLE_DEVICES"]))
    launch(main, parse_arguments(["--num-gpus", "2", "MODEL.DEVICE", device]))
    assert seen == {"gpus": "" if gpus_hidden else "0,1"}


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_torchruns_processes_do_so_too(device, backend, monkeypatch):
    class Chosen(Exception):
        pass

    def choose(backend, timeout):
        raise Chosen(backend)

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", choose)
    with pytest.raises(Chosen, match=backend):
        launch(main, parse_arguments(["MODEL.DEVICE", device]))

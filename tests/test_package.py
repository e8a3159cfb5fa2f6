"""The wheel, in clean environments: for the loss alone, and for training without an extra."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import numpy as np
import pytest
from environments import make_environment, top_level
from packaging.requirements import Requirement
from PIL import Image

from d2_contrast import cli


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, pytestconfig):
    # Of a copy, since setuptools builds in the source tree and takes what it finds there from earlier builds.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(pytestconfig.rootpath / name, source)
    for name in ("d2_contrast", "configs"):
        shutil.copytree(pytestconfig.rootpath / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(python, *arguments, cwd, **variables):
    """Run an interpreter with nothing of this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [python, *arguments], cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_wheel_holds_every_module_and_config(wheel, pytestconfig):
    root = pytestconfig.rootpath
    package = root / "d2_contrast"
    expected = {f.relative_to(root).as_posix() for kind in ("*.py", "*.html") for f in package.rglob(kind)}
    expected.add("d2_contrast/py.typed")
    configs = {f"d2_contrast/{f.relative_to(root).as_posix()}" for f in (root / "configs").rglob("*.yaml")}
    assert len(configs) > 70
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected | configs


LOSS_ALONE = """
import importlib, importlib.util, json, runpy
import torch
from d2_contrast.contrast import supervised_info_nce

doors = {}
names = "ablation analysis config data engine evaluation modeling prediction visualize"
for name in names.split():
    try:
        importlib.import_module(f"d2_contrast.{name}")
    except ImportError as error:
        doors[name] = str(error)
print("from", importlib.util.find_spec("d2_contrast").origin)
print(json.dumps(doors))
print(supervised_info_nce(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])).item())
runpy.run_module("d2_contrast.env", run_name="__main__")
"""


def test_loss_alone_needs_nothing_but_torch(wheel, tmp_path):
    python = make_environment(tmp_path / "environment", wheel, ["torch"])
    origin, doors, loss, *env = run(python, "-W", "ignore", "-c", LOSS_ALONE, cwd=tmp_path).splitlines()
    assert str(tmp_path / "environment") in origin
    # One positive of similarity 1 and two negatives of similarity 0, at temperature 0.1.
    assert float(loss) == pytest.approx(math.log(1 + 2 * math.exp(-10)), rel=1e-3)
    # All else says how to get what is missing.
    doors = json.loads(doors)
    assert len(doors) == 9
    for message in doors.values():
        assert "needs Detectron2" in message and "tools/install_detectron2.py" in message
    train = [python, "-m", "d2_contrast.cli", "train", "--config-file", "shapes/uper_r18"]
    result = subprocess.run(train, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.endswith(f"error: {doors['config']}\n")
    for start in ("torch  ", "detectron2  ", "python  ", "processor  "):
        (line,) = [line for line in env if line.startswith(start)]
        assert ("not installed" in line) == (start == "detectron2  ")


def test_training_from_another_folder_without_extras(wheel, tmp_path):
    python = make_environment(tmp_path / "environment", wheel, ["detectron2"], own_requirements=True)
    folder = tmp_path / "elsewhere"
    rng = np.random.default_rng(0)
    for i in range(2):
        label = rng.integers(0, 3, (8, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        for kind, array in (("images", np.stack([80 * label] * 3, -1)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{i}.png")
    command = ["-W", "ignore", "-m", "d2_contrast.cli"]
    out = run(python, *command, "init", "images", "labels", "--name", "blocks", cwd=folder)
    assert "d2-contrast train --config-file blocks.yaml" in out
    tiny = "MODEL.DEVICE cpu MODEL.BACKBONE.PRETRAINED False MODEL.TIMM.NAME resnet10t MODEL.UPER.OUT_CHANNELS 8"
    tiny += " DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2"
    train = [*command, "train", "--config-file", "blocks.yaml", *tiny.split()]
    out = run(python, *train, cwd=folder, OMP_NUM_THREADS="1")
    assert re.search(r'No pictures are drawn: \w+ is not installed: run `pip install "d2_contrast\[visualize\]"`', out)
    output = folder / "output/blocks"
    assert not list(output.glob("*.png"))
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    (loss,) = [line["loss_contrast_p2_p5"] for line in lines if "loss_contrast_p2_p5" in line]
    assert math.isfinite(loss)
    assert 0 <= json.loads((output / "inference/blocks_val/sem_seg_results.json").read_text())["mIoU"] <= 100
    assert (output / "model_final.pth").is_file()


def test_the_command_is_installed(wheel):
    (distribution,) = metadata.distributions(path=[str(wheel)])
    (command,) = distribution.entry_points
    assert (command.group, command.name) == ("console_scripts", cli.PROGRAM) and command.load() is cli.main


@pytest.fixture
def requirements(wheel):
    """What the wheel requires, and what its extras do: {extra or "": requirements}."""
    (distribution,) = metadata.distributions(path=[str(wheel)])
    found = {extra: [] for extra in ("", *distribution.metadata.get_all("Provides-Extra"))}
    for requirement in map(Requirement, distribution.requires):
        (extra,) = [e for e in found if requirement.marker is None or requirement.marker.evaluate({"extra": e})][:1]
        found[extra].append(requirement)
    return found


def test_every_imported_package_is_declared(requirements, pytestconfig):
    """What training and evaluating import is required; what else is imported is in the extra that is checked for."""
    provided = {
        extra: {entry.removesuffix(".py") for r in those for entry in top_level(metadata.distribution(r.name))}
        for extra, those in requirements.items()
        if extra in ("", "visualize")
    }
    checked = set()
    for file in (pytestconfig.rootpath / "d2_contrast").rglob("*.py"):
        checks_extra = any("_visualize" in f.read_text() for f in (file, file.parent / "__init__.py"))
        declared = provided[""] | (provided["visualize"] if checks_extra else set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for package in {module.partition(".")[0] for module in modules}:
                if package not in sys.stdlib_module_names and package not in ("d2_contrast", "detectron2"):
                    checked.add(package)
                    assert package in declared, f"{file} imports {package}"
    assert {"torch", "numpy", "cv2", "timm", "matplotlib"} <= checked


def test_all_is_every_extra(requirements):
    (everything,) = requirements["all"]
    assert everything.extras == set(requirements) - {"", "all"}

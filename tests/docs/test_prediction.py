"""Every example of docs/prediction.md, and of the README, as it stands there."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from snippets import code_blocks
from tiny_runs import draw_pictures

from d2_contrast.predict import build_parser

ROOT = Path(__file__).parents[2]
EXAMPLES = code_blocks(ROOT / "docs" / "prediction.md")
RUN = "output/shapes/uper_r18_contrast"


@pytest.fixture
def folder(trained_twins, tmp_path, monkeypatch):
    """A folder with a picture and a run where the examples have them."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save("street.jpg")
    (tmp_path / RUN).parent.mkdir(parents=True)
    (tmp_path / RUN).symlink_to(trained_twins[1])
    return tmp_path


@pytest.mark.parametrize("page", ["docs/prediction.md", "README.md"])
def test_three_lines(folder, page):
    code = next(
        block["python"]
        for block in code_blocks(ROOT / page).values()
        if "Segmentor" in block.get("python", "") and "Default" not in block["python"]
    )
    assert len(code.strip().splitlines()) <= 5
    names = {}
    exec(code, names)
    assert names["result"].label_map.shape == (60, 90)
    assert Image.open("overlay.png").width >= 90


def test_default_predictor(folder):
    names = {}
    exec(EXAMPLES["Detectron2's own predictor"]["python"], names)
    expected = names["Segmentor"].load(RUN)("street.jpg").probabilities
    np.testing.assert_allclose(names["scores"].softmax(0).numpy(), expected, atol=1e-3)


def test_commands_have_options_that_exist():
    pages = [(ROOT / page).read_text() for page in ("docs/prediction.md", "README.md")]
    commands = [line.split() for page in pages for line in page.splitlines() if "d2-contrast predict" in line]
    assert len(commands) >= 2
    for command in commands:
        build_parser().parse_args(command[command.index("predict") + 1 :])


def test_own_training_script(folder, monkeypatch):
    """Detectron2's trainer, mapper and loader, with two lines more."""
    section = EXAMPLES["In your own train_net.py"]
    draw_pictures(folder, "train", 4)
    dicts = [
        {"file_name": str(path), "sem_seg_file_name": str(folder / "labels" / path.name), "height": 96, "width": 96}
        for path in sorted((folder / "images").glob("*.png"))
    ]
    size = Image.open(dicts[0]["file_name"]).size
    dicts = [{**x, "width": size[0], "height": size[1]} for x in dicts]
    DatasetCatalog.register("my_train", lambda: dicts)
    MetadataCatalog.get("my_train").set(stuff_classes=[str(i) for i in range(12)], ignore_label=255)
    (folder / "my.yaml").write_text(section["yaml"])
    (folder / "my_train_net.py").write_text(section["python"])
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
    options += ["DATALOADER.NUM_WORKERS", "0", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    options += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "DATASETS.TEST", "()", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16"]
    options += ["DATALOADER.ASPECT_RATIO_GROUPING", "False", "MODEL.FPN.OUT_CHANNELS", "16", "OUTPUT_DIR", "own"]
    monkeypatch.setattr(sys, "argv", ["my_train_net.py", "--config-file", "my.yaml", *options])
    (folder / "own").mkdir()
    try:
        runpy.run_path("my_train_net.py", run_name="__main__")
    finally:
        DatasetCatalog.remove("my_train")
        MetadataCatalog.remove("my_train")
    lines = [json.loads(line) for line in (folder / "own/metrics.json").read_text().splitlines()]
    assert {"loss_sem_seg", "loss_contrast_p2", "loss_contrast_p2_p5"} <= set(lines[-1])
    assert any("contrast.projectors" in name for name in torch.load("own/model_final.pth", weights_only=True)["model"])

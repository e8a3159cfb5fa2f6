import logging
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from tiny_runs import COMMON, CONFIGS, draw_pictures

from d2_contrast.data.datasets.shapes_drawing import CLASSES
from d2_contrast.engine import Trainer, setup

TINY = """
_BASE_: [{base}, {common}]
MODEL:
  SEM_SEG_HEAD: {{DROPOUT: 0.0}}
DATASETS:
  FOLDERS:
  - {{name: tiny_{id}_train, images: {root}/images/train, labels: {root}/labels/train, classes: {classes}}}
  - {{name: tiny_{id}_val, images: {root}/images/val, labels: {root}/labels/val, classes: {classes}}}
  TRAIN: [tiny_{id}_train]
  TEST: [tiny_{id}_val]
SOLVER: {{MAX_ITER: 4}}
"""


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A few images of the embedded dataset, as plain folders that other processes can read too."""
    root = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 6), ("val", 3)):
        draw_pictures(root, split, count, subfolder=split)
    return root


@pytest.fixture
def tiny_datasets(tiny_root):
    """Options that put those images in the place of a config's datasets."""
    entries = [
        {"name": f"tiny_{tiny_root.name}_{split}", "classes": list(CLASSES)}
        | {kind: str(tiny_root / kind / split) for kind in ("images", "labels")}
        for split in ("train", "val")
    ]
    names = [(entry["name"],) for entry in entries]
    return ["DATASETS.FOLDERS", entries, "DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1]]


@pytest.fixture(scope="session")
def write_tiny(tiny_root):
    """Write the config of a tiny run over a base from configs/shapes into a folder and return its path."""

    def write(folder, base: str = "uper_r18_contrast.yaml"):
        path = folder / "tiny.yaml"
        path.write_text(
            TINY.format(
                base=CONFIGS / base,
                common=COMMON,
                root=tiny_root,
                id=tiny_root.name,
                classes=list(CLASSES),
            )
        )
        return str(path)

    return write


@pytest.fixture
def write_config(write_tiny, tmp_path):
    """The same, into the folder of the test."""
    return lambda **options: write_tiny(tmp_path, **options)


@pytest.fixture
def make_cfg(write_config, tmp_path):
    """Run setup() on a tiny config with overrides."""

    def make(*overrides, base: str = "uper_r18_contrast.yaml", eval_only=False, resume=False):
        opts = ["OUTPUT_DIR", str(tmp_path / "output"), *map(str, overrides)]
        return setup(Namespace(config_file=write_config(base=base), opts=opts, eval_only=eval_only, resume=resume))

    return make


@pytest.fixture(scope="session")
def trained(write_tiny, tmp_path_factory):
    """The folder of a run of two iterations, with a moving average; to be left as it is."""
    folder = tmp_path_factory.mktemp("trained")
    opts = ["OUTPUT_DIR", str(folder / "output"), "SOLVER.EMA.ENABLED", "True", "SOLVER.MAX_ITER", "2"]
    trainer = Trainer(setup(Namespace(config_file=write_tiny(folder), opts=opts, eval_only=False)))
    trainer.save_config()
    trainer.train()
    return folder / "output"


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of that run where ``make_cfg`` has its OUTPUT_DIR."""
    return Path(shutil.copytree(trained, tmp_path / "output"))


@pytest.fixture
def logged(caplog):
    """Text of what this project logs, also after setup() has cut its loggers off from the root."""
    logger = logging.getLogger("d2_contrast")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        yield lambda: caplog.text
    logger.removeHandler(caplog.handler)

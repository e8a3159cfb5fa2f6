"""Runs of train_net.py that take a few seconds."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import yaml
from PIL import Image

from d2_contrast.data.datasets.shapes_drawing import CLASSES, draw
from d2_contrast.engine import setup, train

CONFIGS = Path(__file__).parents[1] / "configs/shapes"

COMMON = Path(__file__).with_name("tiny.yaml")

TINY = """
_BASE_: [{base}, {common}]
MODEL:
  CONTRAST: {{EMBEDDING_DIM: 8, LOG_PERIOD: 1}}
DATASETS:
  FOLDERS:
  - {{name: {name}, images: {root}/images, labels: {root}/labels, classes: {classes}, groups: {{rare: [heart, moon]}}}}
  TRAIN: [{name}]
  TEST: [{name}]
SOLVER: {{MAX_ITER: 2}}
OUTPUT_DIR: {output}
"""


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the config of a run."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.dump(config))


def draw_pictures(root: Path, split: str, count: int, subfolder: str = "") -> None:
    """Draw pictures of the embedded dataset into root/images/subfolder and root/labels/subfolder."""
    for index in range(count):
        for kind, array in zip(("images", "labels"), draw(split, index)):
            path = root / kind / subfolder / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def train_twins(root: Path, images: int = 6) -> list[Path]:
    """Train two networks for two iterations, without and with the losses, on some images of the embedded dataset.

    Returns:
        The folders of both runs, root/baseline and root/contrast.
    """
    draw_pictures(root, "val", images)
    folders = []
    for name, base in (("baseline", "uper_r18.yaml"), ("contrast", "uper_r18_contrast.yaml")):
        folders.append(root / name)
        config = root / f"{name}.yaml"
        dataset = f"tiny_runs_{root.name}"
        config.write_text(
            TINY.format(
                base=CONFIGS / base, common=COMMON, name=dataset, root=root, classes=list(CLASSES), output=folders[-1]
            )
        )
        train(setup(Namespace(config_file=str(config), opts=[], eval_only=False)))
    return folders

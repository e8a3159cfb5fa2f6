"""Runs of train_net.py that take a few seconds."""

from argparse import Namespace
from pathlib import Path

from PIL import Image

from d2_contrast.data.datasets.shapes_drawing import CLASSES, draw
from d2_contrast.engine import setup, train

CONFIGS = Path(__file__).parents[1] / "configs/shapes"

TINY = """
_BASE_: {base}
MODEL:
  DEVICE: cpu
  TIMM: {{NAME: resnet10t}}
  UPER: {{OUT_CHANNELS: 8}}
  SEM_SEG_HEAD: {{CONVS_DIM: 8}}
  CONTRAST: {{EMBEDDING_DIM: 8, LOG_PERIOD: 1}}
DATASETS:
  FOLDERS:
  - {{name: {name}, images: {root}/images, labels: {root}/labels, classes: {classes}, groups: {{rare: [heart, moon]}}}}
  TRAIN: [{name}]
  TEST: [{name}]
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{CROP: {{SIZE: [64, 64]}}}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 1, CHECKPOINT_PERIOD: 2}}
TEST: {{EVAL_PERIOD: 0}}
VISUALIZE: {{NUM_IMAGES: 0, TSNE_POINTS: 0}}
OUTPUT_DIR: {output}
"""


def train_twins(root: Path, images: int = 6) -> list[Path]:
    """Train two networks for two iterations, without and with the losses, on some images of the embedded dataset.

    Returns:
        The folders of both runs, root/baseline and root/contrast.
    """
    for index in range(images):
        for kind, array in zip(("images", "labels"), draw("val", index)):
            path = root / kind / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(path)
    folders = []
    for name, base in (("baseline", "uper_r18.yaml"), ("contrast", "uper_r18_contrast.yaml")):
        folders.append(root / name)
        config = root / f"{name}.yaml"
        dataset = f"tiny_runs_{root.name}"
        config.write_text(
            TINY.format(base=CONFIGS / base, name=dataset, root=root, classes=list(CLASSES), output=folders[-1])
        )
        train(setup(Namespace(config_file=str(config), opts=[], eval_only=False)))
    return folders

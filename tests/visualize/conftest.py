import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torch.nn import functional as F

from d2_contrast.config import default_config
from d2_contrast.contrast import ContrastiveBranch, MultiScaleContrast, Projector
from d2_contrast.modeling import ContrastiveSegmentor

CLASSES = ["sky", "grass", "cow"]


class TinyBackbone(Backbone):
    """Two feature maps, made by pooling."""

    size_divisibility = 8

    def forward(self, x):
        return {"fine": F.avg_pool2d(x, 4), "coarse": F.avg_pool2d(x, 8)}

    def output_shape(self):
        return {"fine": ShapeSpec(channels=3, stride=4), "coarse": ShapeSpec(channels=3, stride=8)}


class TinyHead(nn.Module):
    ignore_value = 255

    def forward(self, features, targets=None):
        return F.interpolate(features["fine"], scale_factor=4), {}


@pytest.fixture
def make_model():
    def make(contrast: bool) -> ContrastiveSegmentor:
        torch.manual_seed(0)
        projectors = {name: Projector(3, 8, 1) for name in ("fine", "coarse")}
        criterion = MultiScaleContrast(dict.fromkeys(projectors, 1.0))
        return ContrastiveSegmentor(
            backbone=TinyBackbone(),
            sem_seg_head=TinyHead(),
            pixel_mean=[127.0] * 3,
            pixel_std=[50.0] * 3,
            contrast=ContrastiveBranch(projectors, criterion) if contrast else None,
        )

    return make


@pytest.fixture
def picture_dataset(tmp_path):
    """Make a dataset of eight images, labelled or not, and a config that tests on it."""
    made = []

    def make(labels=(0, 1, 2), labelled=True):
        rng = np.random.default_rng(0)
        dicts = []
        for i in range(8):
            image = str(tmp_path / f"image_{i}.png")
            cv2.imwrite(image, rng.integers(0, 255, (37, 50, 3)).astype(np.uint8))
            dicts.append({"file_name": image})
            if labelled:
                label = rng.choice(labels, (37, 50)).astype(np.uint8)
                label[:5] = 255
                dicts[-1]["sem_seg_file_name"] = str(tmp_path / f"label_{i}.png")
                cv2.imwrite(dicts[-1]["sem_seg_file_name"], label)
        name = f"pictures_{len(made)}"
        made.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
        cfg = default_config()
        cfg.DATASETS.TEST = (name,)
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        cfg.MODEL.CONTRAST.IN_FEATURES = ["fine", "coarse"]
        return cfg

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

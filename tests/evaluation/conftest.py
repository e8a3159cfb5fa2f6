import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

CLASSES = ["road", "tree", "person", "bus", "hat"]
GROUPS = {"things": ["person", "bus", "hat"], "rare": ["hat"]}


@pytest.fixture
def labelled_dataset(tmp_path):
    """A dataset of six label maps: its name, dataset dicts, and the labels themselves."""
    rng = np.random.default_rng(0)
    dicts, labels = [], []
    for i in range(6):
        label = rng.integers(0, len(CLASSES), (20 + i, 30)).astype(np.uint8)
        label[:3] = 255
        path = str(tmp_path / f"label_{i}.png")
        cv2.imwrite(path, label)
        dicts.append({"file_name": str(tmp_path / f"image_{i}.png"), "sem_seg_file_name": path})
        labels.append(label)
    name = "labelled_dataset"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        stuff_classes=CLASSES, ignore_label=255, class_groups=GROUPS, evaluator_type="sem_seg"
    )
    yield name, dicts, labels
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def scores():
    """Make scores (K, H, W) for a label map that are right for about 70 % of its pixels."""

    def make(label: np.ndarray, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        label = torch.from_numpy(label).long().clamp(max=len(CLASSES) - 1)
        noise = torch.rand(len(CLASSES), *label.shape, generator=generator)
        return noise + 0.7 * torch.nn.functional.one_hot(label, len(CLASSES)).permute(2, 0, 1)

    return make

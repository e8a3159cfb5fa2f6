"""Predictions of unlabelled images as files."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_contrast.config import default_config
from d2_contrast.evaluation import SubmissionWriter, build_evaluator


@pytest.fixture
def unlabelled():
    name = "unlabelled_dataset"
    dicts = [{"file_name": "a/one_leftImg8bit.png"}, {"file_name": "b/two.jpg"}, {"file_name": "c/two.jpg"}]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y", "z"], evaluator_type="sem_seg", submission_ids=[7, 200, 0])
    yield name, dicts
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_files_hold_the_benchmarks_ids(unlabelled, tmp_path):
    name, dicts = unlabelled
    cfg = default_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    writer = build_evaluator(cfg, name)
    writer.reset()
    scores = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 1, 2]])
    writer.process(dicts[:2], [{"sem_seg": scores}, {"sem_seg": ids}])
    assert writer.evaluate() == {}

    folder = tmp_path / "inference" / name / "submission"
    assert sorted(p.name for p in folder.iterdir()) == ["one_leftImg8bit.png", "two.png"]
    one = cv2.imread(str(folder / "one_leftImg8bit.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(one, np.array([7, 200, 0])[scores.argmax(0)])
    two = cv2.imread(str(folder / "two.png"), cv2.IMREAD_UNCHANGED)
    assert two.dtype == np.uint8 and two.tolist() == [[7, 200, 0]]


def test_ids_above_255_take_16_bits(unlabelled, tmp_path):
    name, dicts = unlabelled
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y"], submission_ids=[458, 2])
    writer = SubmissionWriter(name, str(tmp_path))
    writer.reset()
    writer.process(dicts[:1], [{"sem_seg": torch.tensor([[1, 0]])}])
    file = cv2.imread(str(tmp_path / "submission" / "one_leftImg8bit.png"), cv2.IMREAD_UNCHANGED)
    assert file.dtype == np.uint16 and file.tolist() == [[2, 458]]


def test_without_a_table_train_ids_are_written(unlabelled, tmp_path):
    name, dicts = unlabelled
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y"])
    writer = SubmissionWriter(name, str(tmp_path))
    writer.reset()
    writer.process(dicts[:1], [{"sem_seg": torch.tensor([[1, 0]])}])
    file = cv2.imread(str(tmp_path / "submission" / "one_leftImg8bit.png"), cv2.IMREAD_UNCHANGED)
    assert file.tolist() == [[1, 0]]


def test_two_images_of_one_name_are_refused(unlabelled, tmp_path):
    name, dicts = unlabelled
    writer = SubmissionWriter(name, str(tmp_path))
    writer.reset()
    with pytest.raises(ValueError, match="b/two.jpg and c/two.jpg have the same name"):
        writer.process(dicts[1:], [{"sem_seg": torch.zeros(1, 2, dtype=torch.long)}] * 2)

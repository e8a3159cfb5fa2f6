"""Predictions of unlabelled images as files."""

from pathlib import Path

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


def predict(writer, dicts, prediction=((1, 0),)):
    writer.reset()
    writer.process(dicts, [{"sem_seg": torch.tensor(prediction)}] * len(dicts))
    writer.evaluate()
    return sorted(p.relative_to(writer.folder).as_posix() for p in Path(writer.folder).rglob("*.png"))


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
    one = cv2.imread(str(folder / "a" / "one_leftImg8bit.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(one, np.array([7, 200, 0])[scores.argmax(0)])
    two = cv2.imread(str(folder / "b" / "two.png"), cv2.IMREAD_UNCHANGED)
    assert two.dtype == np.uint8 and two.tolist() == [[7, 200, 0]]


def test_ids_above_255_take_16_bits(unlabelled, tmp_path):
    name, dicts = unlabelled
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y"], submission_ids=[458, 2])
    predict(SubmissionWriter(name, str(tmp_path)), dicts[:1])
    file = cv2.imread(str(tmp_path / "submission" / "a" / "one_leftImg8bit.png"), cv2.IMREAD_UNCHANGED)
    assert file.dtype == np.uint16 and file.tolist() == [[2, 458]]


def test_without_a_table_train_ids_are_written(unlabelled, tmp_path):
    name, dicts = unlabelled
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y"])
    predict(SubmissionWriter(name, str(tmp_path)), dicts[:1])
    file = cv2.imread(str(tmp_path / "submission" / "a" / "one_leftImg8bit.png"), cv2.IMREAD_UNCHANGED)
    assert file.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("file_names", "folder", "written"),
    [
        (["d/b/two.jpg", "d/c/two.jpg"], None, ["b/two.png", "c/two.png"]),
        (["d/b/two.jpg"], None, ["two.png"]),
        (["d/b/two.jpg"], "d", ["b/two.png"]),
        (["/d/x.jpg", "/d/e/x.jpg", "/d/e/y.jpg"], "/d", ["e/x.png", "e/y.png", "x.png"]),
        (["d/x.jpg", "d/x.png", "d/y.jpg"], None, ["x.jpg.png", "x.png.png", "y.png"]),
        (["d/x.0.jpg", "d/x.1.jpg"], None, ["x.0.png", "x.1.png"]),
        (["d/x.jpg", "d/../e/x.jpg"], "d", ["d/x.png", "e/x.png"]),
        (["/d/b/x.jpg", "/d/b/../c/y.jpg"], "/d/b", ["b/x.png", "c/y.png"]),
        (["d/gr\udcfcn.jpg"], None, ["gr\udcfcn.png"]),  # a name that is not UTF-8
    ],
)
def test_paths_are_kept_below_the_images(unlabelled, tmp_path, monkeypatch, file_names, folder, written):
    name, dicts = unlabelled
    monkeypatch.setenv("DETECTRON2_DATASETS", ".")
    dicts[:] = [{"file_name": f} for f in file_names]
    MetadataCatalog.get(name).images_folder = folder
    assert predict(SubmissionWriter(name, str(tmp_path)), dicts) == written

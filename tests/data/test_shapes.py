import json
import logging
import multiprocessing

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_contrast.data import read_label
from d2_contrast.data.datasets import shapes
from d2_contrast.data.datasets.shapes_drawing import CLASSES, FORMS, THINGS, draw


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A few pictures instead of a thousand, in a folder of their own."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "NUM_IMAGES", {"train": 5, "val": 3})
    return tmp_path / "datasets" / "shapes"


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*.png")}


def test_first_load_draws_the_files(root):
    assert not root.exists()
    records = DatasetCatalog.get("shapes_train")
    assert [len(records), len(DatasetCatalog.get("shapes_val"))] == [5, 3]
    metadata = MetadataCatalog.get("shapes_train")
    for index, record in enumerate(records):
        image, label = draw("train", index)
        np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), image)
        np.testing.assert_array_equal(read_label(record["sem_seg_file_name"], metadata), label)
        assert image.shape == (record["height"], record["width"], 3)


def test_second_load_leaves_the_files(root):
    DatasetCatalog.get("shapes_train")
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    DatasetCatalog.get("shapes_val")
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "other version"])
def test_half_written_folder_is_drawn_again(root, damage, caplog):
    DatasetCatalog.get("shapes_train")
    whole = contents(root)
    victim = root / "labels" / "val" / "0001.png"
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        (root / "manifest.json").write_text('{"version": 0, "bytes": {}}')
    with caplog.at_level(logging.WARNING, logger=shapes.__name__):
        DatasetCatalog.get("shapes_train")
    assert contents(root) == whole
    assert "drawing it again" in caplog.text


def test_an_interrupted_drawing_is_taken_up(root, monkeypatch):
    """Half of a dataset is recognised as that, whatever ends the process."""

    def fail(split, index):
        if split == "val":
            raise KeyboardInterrupt
        return draw(split, index)

    monkeypatch.setattr(shapes, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        DatasetCatalog.get("shapes_train")
    assert len(contents(root)) == 10
    monkeypatch.setattr(shapes, "draw", draw)
    DatasetCatalog.get("shapes_train")
    assert len(contents(root)) == 16


FOREIGN = {
    "files": lambda root: (root / "mine.txt").write_text("x"),
    "the same names": lambda root: (root / "images/train").mkdir(parents=True),
    "its own manifest": lambda root: (root / "manifest.json").write_text('{"version": 5, "bytes": {"mine.txt": 1}}'),
    "another manifest": lambda root: (root / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_others_have_written_is_left_alone(root, case):
    root.mkdir(parents=True)
    FOREIGN[case](root)
    before = sorted(root.rglob("*")), contents(root)
    with pytest.raises(FileExistsError, match=f"{root} is where the embedded dataset belongs.*DETECTRON2_DATASETS"):
        DatasetCatalog.get("shapes_train")
    assert (sorted(root.rglob("*")), contents(root)) == before


def test_foreign_files_in_the_dataset_stay(root):
    """Also when it is drawn again; files of an older version that the new one has not are removed."""
    root.mkdir(parents=True)
    DatasetCatalog.get("shapes_train")
    (root / "images/notes.txt").write_text("mine")
    (root / "images/train/old.png").write_text("mine, too")
    (root / "images/train/9999.png").write_text("of version 4")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["version"], manifest["bytes"]["images/train/9999.png"] = 4, 12
    (root / "manifest.json").write_text(json.dumps(manifest))
    DatasetCatalog.get("shapes_train")
    assert (root / "images/notes.txt").read_text() == "mine" and (root / "images/train/old.png").exists()
    assert not (root / "images/train/9999.png").exists() and len(contents(root)) == 16 + 1


def test_processes_that_start_at_once_share_one_drawing(root):
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=shapes.load_shapes, args=("train",)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert len(contents(root)) == 16
    assert [p.name for p in root.parent.iterdir() if p.is_dir()] == ["shapes"]


def test_splits_are_disjoint():
    pictures = {split: {draw(split, i)[0].tobytes() for i in range(30)} for split in shapes.NUM_IMAGES}
    assert len(pictures["train"]) == len(pictures["val"]) == 30
    assert not pictures["train"] & pictures["val"]


def test_classes_have_the_promised_tail_and_sizes():
    names, groups = CLASSES, MetadataCatalog.get("shapes_train").class_groups
    assert sorted(groups["stuff"] + groups["things"]) == sorted(names)
    labels = [draw("train", i)[1] for i in range(shapes.NUM_IMAGES["train"])]
    for index, name in enumerate(names):
        found = [label == index for label in labels if (label == index).any()]
        share = len(found) / len(labels)
        assert (share < 0.15) == (name in groups["rare"]), name
        if name in groups["things"]:
            # Hidden things leave crumbs, which are no small things.
            parts = [cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:] for mask in found]
            whole = [part for stats in parts for part in stats if part[cv2.CC_STAT_AREA] >= 20]
            across = [max(part[cv2.CC_STAT_WIDTH], part[cv2.CC_STAT_HEIGHT]) for part in whole]
            assert min(across) <= 12 and max(across) >= 70, (name, min(across), max(across))


def test_frame_is_ignored():
    for index in range(5):
        label = draw("val", index)[1]
        edge = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
        assert (edge == 255).all() and (label[8:-8, 8:-8] != 255).all()


@pytest.mark.parametrize("name", THINGS)
def test_forms_have_a_distance_in_pixels(name):
    """The distance changes by one per pixel around the outline, or else outlines would be blurred."""
    y, x = np.mgrid[-45:46, -45:46].astype(float)
    distance = 30 * FORMS[name](x / 30, y / 30)
    inside = (distance <= 0).mean() * 91**2 / 30**2
    assert 0.8 < inside < 3.3  # area, in squared radii
    slope = np.hypot(*np.gradient(distance))[abs(distance) < 1.5]
    assert np.median(slope) == pytest.approx(1, abs=0.1)

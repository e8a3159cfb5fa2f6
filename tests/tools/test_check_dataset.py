import runpy
from pathlib import Path

import miniatures
import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_contrast.data.datasets import folders

main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "check_dataset.py"))["main"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    known = set(DatasetCatalog)
    yield tmp_path
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    folders._registered.clear()


@pytest.fixture
def garden(root):
    """A dataset in folders, described in a config: three labels, one pixel of class bed, one ignored."""
    labels = [np.zeros((8, 10)), np.ones((8, 10)), np.ones((8, 10))]
    labels[0][0, 0], labels[0][0, 1] = 2, 255
    for kind in ("images", "labels"):
        (root / "garden" / kind).mkdir(parents=True)
    for i, label in enumerate(labels):
        Image.new("RGB", (10, 8), (90, 120, 60)).save(root / f"garden/images/{i}.png")
        Image.fromarray(label.astype(np.uint8)).save(root / f"garden/labels/{i}.png")
    entry = {"images": "garden/images", "labels": "garden/labels", "classes": ["lawn", "path", "bed"]}
    config = root / "garden.yaml"
    config.write_text(yaml.dump({"DATASETS": {"FOLDERS": [{"name": "garden", **entry}]}}))
    return root, ["garden", "--config-file", str(config), "--output", str(root / "out")]


def test_intact_dataset(garden, capsys):
    root, arguments = garden
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["garden:", "3", "images,", "3", "with", "labels"] in rows
    for row in (
        ["0", "lawn", "33.33%", "32.500%"],  # 78 of 240 pixels
        ["1", "path", "66.67%", "66.667%"],
        ["2", "bed", "33.33%", "0.417%"],
        ["(ignored)", "33.33%", "0.417%"],
    ):
        assert row in rows
    assert ["No", "problems"] in rows
    with Image.open(root / "out" / "browse.png") as image:
        assert min(image.size) > 300


def test_problems_are_listed_by_file(garden, capsys):
    root, arguments = garden
    (root / "garden/labels/0.png").unlink()
    Image.new("L", (7, 8)).save(root / "garden/labels/1.png")
    Image.fromarray(np.full((8, 10), 9, np.uint8)).save(root / "garden/labels/2.png")
    data = (root / "garden/images/2.png").read_bytes()
    (root / "garden/images/2.png").write_bytes(data[: len(data) // 2])
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 problems"
    text = "\n".join(lines)
    for part in (
        "labels/0.png: no such label map",
        "labels/1.png: the label has 8 x 7 pixels (height x width), its image 8 x 10",
        "labels/2.png: label value 9 (80 pixels)",
        "images/2.png: cannot read this image",
    ):
        assert part in text
    assert not (root / "out" / "browse.png").exists()  # no sample is intact


def test_problems_of_a_benchmark_are_listed_by_file(root, capsys):
    """Files that say nothing about the encoding of the labels do not keep the others from being checked."""
    broken, odd, *_ = miniatures.ade20k(root)
    broken.write_bytes(broken.read_bytes()[:60])
    Image.new("L", (64, 48), 200).save(odd)
    assert main(["ade20k_150_train", "--output", str(root)]) == 1
    out = capsys.readouterr().out
    assert f"{broken.name}: cannot read this label map" in out
    assert f"{odd.name}: label value 200 (3072 pixels) is outside the classes of dataset 'ade20k_150_train'" in out
    assert out.endswith("3 problems\n")  # the number of images is the third


def test_benchmark_counts_are_compared_with_the_published_ones(root, capsys):
    miniatures.cityscapes(root)
    assert main(["cityscapes_19_val", "--output", str(root)]) == 1
    out = capsys.readouterr().out
    assert "cityscapes_19_val has 2 images, published: 500\n1 problems" in out
    assert (root / "browse.png").exists()


def test_complete_benchmark_without_labels_has_no_problems(root, capsys, monkeypatch):
    miniatures.cityscapes(root)
    monkeypatch.setitem(vars(MetadataCatalog.get("cityscapes_19_test")), "num_images", [1])
    assert main(["cityscapes_19_test", "--output", str(root)]) == 0
    assert "1 images, 0 with labels" in capsys.readouterr().out
    assert (root / "browse.png").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cityscapes_19", "Dataset 'cityscapes_19' is not registered! Available datasets are: "),
        ("ade20k_150_val", "dataset 'ade20k_150_val' is not there: there is no folder ADEChallengeData2016"),
    ],
)
def test_dataset_that_cannot_be_loaded(root, capsys, name, message):
    assert main([name]) == 1
    assert message in capsys.readouterr().out

from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_contrast.config import default_config, load_config
from d2_contrast.data import read_label, register_folders
from d2_contrast.data.datasets import folders


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    known = set(DatasetCatalog)
    for i, sub in enumerate(["", "deep/er/"]):
        for kind in ("images", "labels"):
            (tmp_path / "garden" / kind / sub).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / f"garden/images/{sub}{i}.jpg")
        Image.fromarray(np.full((4, 6), i, np.uint8)).save(tmp_path / f"garden/labels/{sub}{i}.png")
    yield tmp_path
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    folders._registered.clear()


def entry(**changes):
    full = {
        "name": "garden",
        "images": "garden/images",
        "labels": "garden/labels",
        "classes": ["lawn", "path"],
        **changes,
    }
    return {k: v for k, v in full.items() if v is not None}


def test_dataset_from_a_config_file(root):
    (root / "garden.yaml").write_text(yaml.dump({"DATASETS": {"FOLDERS": [entry()], "TRAIN": ["garden"]}}))
    register_folders(load_config(str(root / "garden.yaml")).DATASETS.FOLDERS)
    records = DatasetCatalog.get("garden")
    assert [r["file_name"] for r in records] == [
        str(root / "garden/images/0.jpg"),
        str(root / "garden/images/deep/er/1.jpg"),
    ]
    metadata = MetadataCatalog.get("garden")
    assert metadata.stuff_classes == ["lawn", "path"]
    for i, record in enumerate(records):
        assert (read_label(record["sem_seg_file_name"], metadata) == i).all()


def test_config_without_folders_registers_nothing():
    known = set(DatasetCatalog)
    register_folders(default_config().DATASETS.FOLDERS)
    assert set(DatasetCatalog) == known


def test_label_values_colours_and_groups(root):
    classes = [
        {"name": "lawn", "color": [1, 2, 3], "values": [1, 7]},
        {"name": "path", "color": [4, 5, 6], "values": 300},
        {"name": "bed", "color": [7, 8, 9], "values": 2},
    ]
    (root / "classes.yaml").write_text(yaml.dump(classes))
    register_folders([entry(classes="classes.yaml", ignore_values=[0, 9], groups={"rare": ["bed"]})])
    path = root / "x.png"
    Image.fromarray(np.array([[1, 7, 300], [2, 0, 9]], np.uint16)).save(path)
    metadata = MetadataCatalog.get("garden")
    np.testing.assert_array_equal(read_label(str(path), metadata), [[0, 0, 1], [2, 255, 255]])
    assert metadata.stuff_colors == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert metadata.class_groups == {"rare": ["bed"]}


def test_dataset_without_labels(root):
    register_folders([entry(labels=None)])
    assert all("sem_seg_file_name" not in r for r in DatasetCatalog.get("garden"))


def test_linked_folders_are_searched(root):
    for kind in ("images", "labels"):
        (root / f"garden/{kind}/deep").rename(root / f"{kind}_elsewhere")
        (root / f"garden/{kind}/deep").symlink_to(root / f"{kind}_elsewhere")
    register_folders([entry()])
    assert [Path(r["file_name"]).name for r in DatasetCatalog.get("garden")] == ["0.jpg", "1.jpg"]


def test_label_suffix(root):
    register_folders([entry(label_suffix="_mask.tif")])
    assert DatasetCatalog.get("garden")[0]["sem_seg_file_name"].endswith("labels/0_mask.tif")


def test_registering_twice_is_fine_but_not_as_something_else(root):
    register_folders([entry()])
    register_folders([entry()])
    with pytest.raises(ValueError, match="another dataset named 'garden'"):
        register_folders([entry(classes=["lawn"])])
    with pytest.raises(ValueError, match="another dataset named 'shapes_val'"):
        register_folders([entry(name="shapes_val")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"'garden'.*expected the keys .*'images'.*found \['classes', 'labels', 'name'\]"),
        ({"lables": "x"}, r"'garden'.*'lables'"),
        ({"classes": []}, r"'garden': classes must be a list of names"),
        ({"classes": ["a", 3]}, r"'garden': classes must be a list of names"),
        ({"classes": [{"name": "a", "colour": 1}]}, r"'garden': classes must be a list of names"),
        ({"classes": ["a", {"name": "b", "values": 3}]}, r"'garden': either all classes have a values entry or none"),
        ({"ignore_values": [1]}, r"'garden': label value 1 has two meanings"),
        ({"groups": {"rare": ["tree"]}}, r"'garden': groups name the classes \['tree'\].*lawn"),
    ],
)
def test_wrong_entries_are_named(root, changes, message):
    with pytest.raises(ValueError, match=message):
        register_folders([entry(**changes)])
    assert "garden" not in DatasetCatalog


def test_empty_folder_is_an_error(root):
    register_folders([entry(images="nowhere")])
    with pytest.raises(FileNotFoundError, match=r"dataset 'garden' is not there.*nowhere"):
        DatasetCatalog.get("garden")


def test_example_of_the_documentation(root):
    repository = Path(__file__).parents[2]
    page = (repository / "docs" / "custom_dataset.md").read_text()
    config, classes = (block.split("```")[0] for block in page.split("```yaml\n")[1:])
    config = config.replace("_BASE_: configs", f"_BASE_: {repository}/configs")
    (root / "garden.yaml").write_text(config)
    cfg = load_config(str(root / "garden.yaml"))
    register_folders(cfg.DATASETS.FOLDERS)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(MetadataCatalog.get(name).stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    register_folders([entry(name="other", **yaml.safe_load(classes))])
    assert MetadataCatalog.get("other").stuff_classes == ["lawn", "path"]

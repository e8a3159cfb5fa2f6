"""The classes of datasets, configs and files."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from d2_contrast.config import load_config
from d2_contrast.data import Classes
from d2_contrast.data.classes import distinct_colors


def config(**options):
    return load_config(
        "shapes/uper_r18", [x for key, value in options.items() for x in (key.replace("__", "."), value)]
    )


def test_of_a_registered_dataset():
    classes = Classes.of_config(load_config("cityscapes/uper_swin_t_bs8_160k"))
    assert len(classes) == 19 and classes.names[0] == "road" and classes.colors[0] == (128, 64, 128)
    assert classes.ids[:3] == (7, 8, 11) and classes.ignore_label == 255  # ids of the benchmark


ENTRY = {
    "name": "garden",
    "images": "nowhere",
    "classes": [
        {"name": "lawn", "color": [1, 2, 3], "values": [9, 4]},
        {"name": "path", "color": [4, 5, 6], "values": 7},
    ],
}


def test_of_folders_which_are_not_registered_for_that():
    cfg = config(DATASETS__TRAIN=("garden",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)
    cfg.DATASETS.FOLDERS = [ENTRY]
    assert Classes.of_config(cfg) == Classes(("lawn", "path"), ((1, 2, 3), (4, 5, 6)), (9, 7))
    assert "garden" not in DatasetCatalog


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ["a", "b", "c"]}, "garden has 3 classes, the network 2"),
        ({"classes": "not_there.yaml"}, "not_there.yaml"),
        ({"name": "lawn"}, "garden and shapes_val: not registered here|shapes_val has 12 classes"),
    ],
)
def test_numbers_where_names_are_not_known(change, reason, caplog):
    cfg = config(DATASETS__TRAIN=("garden",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)
    cfg.DATASETS.FOLDERS = [{**ENTRY, **change}]
    assert Classes.of_config(cfg) == Classes.numbered(2)


def test_without_colors_they_are_distinct():
    name = "colourless"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=7)
    try:
        classes = Classes.of_dataset(MetadataCatalog.get(name))
        assert classes.ids == (0, 1) and classes.ignore_label == 7
        np.testing.assert_array_equal(classes.palette, distinct_colors(2))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert len(set(Classes.numbered(60).colors)) == 60


def test_a_class_that_files_lack_has_a_value_of_its_own():
    metadata = Metadata(stuff_classes=["a", "b", "c"], label_encodings={"raw": {0: 255, 10: 0, 1: 2}})
    assert Classes.of_dataset(metadata).ids == (10, 2, 1)


def test_as_text():
    classes = Classes(("straße", 'a "b"'), ((1, 2, 3), (4, 5, 6)), (9, 300), 65535)
    assert Classes.from_json(classes.to_json()) == classes
    for text in ("", "[]", '{"names": ["a"]}', classes.to_json().replace("300", '"x"')):
        with pytest.raises(ValueError, match="cannot be read"):
            Classes.from_json(text)


def test_all_parts_are_of_one_length():
    with pytest.raises(ValueError, match="there are 2 names, 1 colors and 2 ids of classes"):
        Classes(("a", "b"), ((1, 2, 3),), (0, 1))

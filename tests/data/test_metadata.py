import numpy as np
import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from d2_contrast.data import check_metadata, check_same_classes


def toy(**changes):
    entries = {"stuff_classes": ["a", "b", "c"], **changes}
    return Metadata(name="toy").set(**{k: v for k, v in entries.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stuff_classes": None}, "no stuff_classes"),
        ({"stuff_classes": "abc"}, "classes 'abc': expected a list"),
        ({"stuff_classes": ["a", 1]}, "name of class 1 is 1"),
        ({"stuff_classes": ["a", "a"]}, "classes 0 and 1 are both named 'a'"),
        ({"stuff_classes": ["a"]}, r"has 1 class to learn \(a; ignore_label 255\): expected two"),
        ({"stuff_classes": ["a", "b"], "ignore_label": 0}, r"has 1 class to learn \(a, b; ignore_label 0\)"),
        ({"ignore_label": -1}, "ignore_label -1: expected a number from 0 to 65535"),
        ({"ignore_label": 65536}, "ignore_label 65536"),
        ({"ignore_label": "255"}, "ignore_label '255'"),
        ({"ignore_label": True}, "ignore_label True"),
        ({"stuff_classes": [f"c{i}" for i in range(256)]}, "256 classes and no ignore_label, .* is its class 'c255'"),
        ({"stuff_colors": [[0, 0, 0]]}, "expected one for each of its 3 classes"),
        ({"stuff_colors": [[0, 0, 0], [1, 1, 1], [0, 0, 256]]}, r"class 'c' has the colour \[0, 0, 256\]"),
        ({"class_groups": {"x": ["a", "d"]}}, "group 'x' has the class 'd'"),
        ({"label_encodings": {}}, r"label_encodings \{\}: expected"),
        ({"label_encodings": {0: 1}}, r"label_encodings \{0: 1\}: expected"),
        ({"label_encodings": {"raw": {}}}, "'raw': expected values"),
        ({"label_encodings": {"raw": {"1": 0}}}, "'raw': a label file cannot hold the value '1'"),
        ({"label_encodings": {"raw": {-1: 255}}}, "'raw': a label file cannot hold the value -1"),
        ({"label_encodings": {"raw": {1: 3}}}, "'raw': value 1 means the train id 3, expected 0 to 2, or 255"),
        ({"label_encodings": {"raw": {1: -1}}}, "'raw': value 1 means the train id -1"),
        ({"label_encodings": {"raw": {1: 0}}, "label_encoding": "shifted"}, r"label_encoding 'shifted': .*\['raw'\]"),
        ({"label_encodings": {"raw": {1: 0}}, "label_encoding": ["raw"]}, r"label_encoding \['raw'\]"),
        ({"submission_ids": 3}, "submission_ids 3: expected one"),
        ({"num_images": 3}, "num_images 3: expected a list"),
        ({"submission_ids": [1, 2]}, r"submission_ids \[1, 2\]: expected one from 0 to 65535 for each class"),
    ],
)
def test_what_makes_no_sense_is_named(changes, message):
    with pytest.raises(ValueError, match=f"^dataset 'toy'.*{message}"):
        check_metadata(toy(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ignore_label": 0},
        {"stuff_classes": [f"c{i}" for i in range(256)], "ignore_label": 255},
        {"stuff_classes": [f"c{i}" for i in range(255)]},
        {"ignore_label": np.int64(65535)},
        {"stuff_classes": ("a", "b", "c"), "stuff_colors": np.zeros((3, 3), np.uint8)},
        {"label_encodings": {"raw": {np.uint8(7): np.int64(0), 9: 255}}},
    ],
)
def test_what_makes_sense(changes):
    check_metadata(toy(**changes))


def test_every_registered_dataset_makes_sense():
    ours = [
        n
        for n in DatasetCatalog
        if n.startswith(("ade20k_150", "cadis", "camvid", "cityscapes_19", "pascal", "shapes"))
    ]
    assert len(ours) > 30
    for name in ours:
        check_metadata(MetadataCatalog.get(name))


def test_datasets_of_a_run_agree():
    first = toy()
    check_same_classes([])
    check_same_classes([first, Metadata(name="same").set(stuff_classes=("a", "b", "c"))])
    for classes, message in (
        ("acb", "class 1 is 'b' in dataset 'toy' and 'c' in dataset 'other'"),
        ("ab", "class 2 is 'c' in dataset 'toy' and missing in dataset 'other'"),
        ("abcd", "class 3 is missing in dataset 'toy' and 'd' in dataset 'other'"),
    ):
        with pytest.raises(
            ValueError, match=f"{message}: all datasets of a run need the same classes in the same order"
        ):
            check_same_classes([first, first, Metadata(name="other").set(stuff_classes=list(classes))])
    with pytest.raises(ValueError, match="'toy' has the ignore_label 255, dataset 'other' 0"):
        check_same_classes([first, Metadata(name="other").set(stuff_classes=list("abc"), ignore_label=0)])

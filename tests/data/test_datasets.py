import logging

import miniatures
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as cityscapes_labels
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

import d2_contrast.data  # noqa: F401  registers the datasets
from d2_contrast.data import read_label

OURS = ("ade20k_150_", "cadis_task", "camvid_11_", "cityscapes_19_", "pascal_context_59_", "shapes_")
NAMES = [name for name in DatasetCatalog if name.startswith(OURS)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def assert_labels(name, truth):
    """Every label of a split is read as what the miniature means."""
    records = DatasetCatalog.get(name)
    for record in records:
        from_file = read_label(record["sem_seg_file_name"], MetadataCatalog.get(name))
        np.testing.assert_array_equal(from_file, truth[type(next(iter(truth)))(record["sem_seg_file_name"])])
    return records


@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_consistent(name):
    metadata = MetadataCatalog.get(name)
    classes = metadata.stuff_classes
    assert len(set(classes)) == len(classes) == len(metadata.stuff_colors)
    assert all(len(color) == 3 and all(0 <= v <= 255 for v in color) for color in metadata.stuff_colors)
    assert metadata.ignore_label == 255
    for group in metadata.get("class_groups", {}).values():
        assert group and set(group) <= set(classes)
    for table in metadata.get("label_encodings", {}).values():
        assert set(table.values()) - {255} == set(range(len(classes)))
    if ids := metadata.get("submission_ids"):
        assert len(set(ids)) == len(classes)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("shapes")])
def test_missing_dataset_says_where_it_should_be(name, root):
    with pytest.raises(FileNotFoundError, match=rf"dataset '{name}' is not there: .*DETECTRON2_DATASETS.*{root}"):
        DatasetCatalog.get(name)


def test_unregistered_name_is_an_error():
    with pytest.raises(KeyError, match=r"'cityscapes_20' is not registered.*cityscapes_19_train.*shapes_train"):
        DatasetCatalog.get("cityscapes_20")


def test_cityscapes_agrees_with_its_scripts():
    metadata = MetadataCatalog.get("cityscapes_19_val")
    raw = metadata.label_encodings["labelIds"]
    assert raw == {x.id: x.trainId for x in cityscapes_labels if x.id >= 0}
    by_train_id = {x.trainId: x for x in cityscapes_labels if 0 <= x.trainId < 255}
    official = [by_train_id[i] for i in range(19)]
    assert metadata.stuff_classes == [x.name for x in official]
    assert metadata.stuff_colors == [list(x.color) for x in official]
    assert metadata.submission_ids == [x.id for x in official]
    for category, names in metadata.class_groups.items():
        assert names == [x.name for x in official if x.category == category]
    assert len(metadata.class_weights) == 19 and metadata.class_weights[17] == 1.1529  # motorcycle


@pytest.mark.parametrize(
    ("encoding", "found"), [("labelIds", "labelIds"), ("labelTrainIds", "labelTrainIds"), ("both", "labelIds")]
)
def test_cityscapes(root, caplog, encoding, found):
    truth = miniatures.cityscapes(root, encoding=encoding)
    with caplog.at_level(logging.INFO):
        counts = [len(assert_labels(f"cityscapes_19_{s}", truth)) for s in ("train", "val", "trainval")]
    assert counts == [4, 2, 6]
    assert MetadataCatalog.get("cityscapes_19_train").label_encoding == found
    assert f"cityscapes_19_train are encoded as {found}" in caplog.text
    test = DatasetCatalog.get("cityscapes_19_test")
    assert len(test) == 1 and "sem_seg_file_name" not in test[0]
    assert [MetadataCatalog.get(f"cityscapes_19_{s}").has_labels for s in ("val", "test")] == [True, False]


def test_cityscapes_without_labels_still_names_them(root):
    miniatures.cityscapes(root, encoding="none")
    record = DatasetCatalog.get("cityscapes_19_val")[0]
    assert record["sem_seg_file_name"].endswith("_gtFine_labelIds.png")


def test_ade20k_classes_are_in_detectron2s_order():
    names = MetadataCatalog.get("ade20k_150_train").stuff_classes
    theirs = [name.replace(",", " ").split() for name in ADE20K_SEM_SEG_CATEGORIES]
    # The wording differs ("window" and "windowpane"), the order must not.
    same = [name.split()[0] in words for name, words in zip(names, theirs, strict=True)]
    assert sum(same) >= 138
    shifted = [name.split()[0] in words for name, words in zip(names, theirs[1:], strict=False)]
    assert sum(shifted) < 10


@pytest.mark.parametrize(
    ("shifted", "folder", "found"),
    [
        (False, None, "1..150, 0 ignored"),
        (True, None, "0..149, 255 ignored"),
        (True, "annotations", "0..149, 255 ignored"),  # somebody replaced the files in place
    ],
)
def test_ade20k(root, shifted, folder, found):
    truth = miniatures.ade20k(root, shifted=shifted, folder=folder)
    assert [len(assert_labels(f"ade20k_150_{s}", truth)) for s in ("train", "val")] == [4, 2]
    assert MetadataCatalog.get("ade20k_150_train").label_encoding == found


def test_ade20k_with_both_folders_shifts_once(root):
    truth = miniatures.ade20k(root) | miniatures.ade20k(root, shifted=True)
    records = assert_labels("ade20k_150_train", truth)
    assert all("/annotations/" in r["sem_seg_file_name"] for r in records)


PASCAL_ENCODINGS = {"59": "1..59, 0 ignored", "shifted": "0..58, 255 ignored", "459": "459 classes"}


@pytest.mark.parametrize(
    ("layout", "encoding", "found"),
    [
        *((la, e, found) for la in ("voc", "folders", "detectron2") for e, found in PASCAL_ENCODINGS.items()),
        ("voc", "mat", "459 classes"),  # the original release
    ],
)
def test_pascal_context(root, layout, encoding, found):
    truth = miniatures.pascal_context(root, layout=layout, encoding=encoding)
    assert [len(assert_labels(f"pascal_context_59_{s}", truth)) for s in ("train", "val")] == [4, 2]
    assert MetadataCatalog.get("pascal_context_59_train").label_encoding == found


def test_pascal_context_names_at_some_ids():
    metadata = MetadataCatalog.get("pascal_context_59_val")
    names = metadata.stuff_classes
    assert [names[i] for i in (0, 36, 46, 58)] == ["aeroplane", "person", "sky", "wood"]
    raw = metadata.label_encodings["459 classes"]
    assert [raw[i] for i in (2, 284, 360, 458, 1, 0)] == [0, 36, 46, 58, 255, 255]
    assert names == sorted(names)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPG"])
@pytest.mark.parametrize(("void", "found"), [(11, "0..10, 11 ignored"), (255, "0..10, 255 ignored")])
def test_camvid(root, void, found, suffix):
    truth = miniatures.camvid(root, void=void, suffix=suffix)
    records = {s: assert_labels(f"camvid_11_{s}", truth) for s in ("train", "val", "trainval", "test", "train_quarter")}
    assert {s: len(r) for s, r in records.items()} == {
        "train": 4, "val": 2, "trainval": 6, "test": 3, "train_quarter": 1,
    }  # fmt: skip
    assert MetadataCatalog.get("camvid_11_test").label_encoding == found
    files = {s: {r["file_name"] for r in rs} for s, rs in records.items()}
    assert files["train"] | files["val"] == files["trainval"] and not files["trainval"] & files["test"]
    assert all(name.endswith(suffix) for name in files["trainval"])


def test_camvid_with_a_folder_missing(root):
    miniatures.camvid(root)
    for file in (root / "CamVid" / "val").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"'camvid_11_trainval' is not there: no file matches .*CamVid/val"):
        DatasetCatalog.get("camvid_11_trainval")
    (root / "CamVid" / "val").rmdir()
    with pytest.raises(FileNotFoundError, match=r"'camvid_11_val' is not there: there is no folder .*CamVid/val"):
        DatasetCatalog.get("camvid_11_val")


def test_camvid_in_two_formats_at_once(root):
    miniatures.camvid(root)
    miniatures.camvid(root, suffix=".jpg")
    with pytest.raises(ValueError, match=r"'camvid_11_val': .*\.jpg and .*\.png would have the same label map"):
        DatasetCatalog.get("camvid_11_val")


def test_camvid_classes_are_those_of_segnet():
    """Names and order as in the configuration files of SegNet's tutorial."""
    metadata = MetadataCatalog.get("camvid_11_test")
    assert metadata.stuff_classes == [
        "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
    ]  # fmt: skip
    assert metadata.class_groups == {"rare": ["Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist"]}


# Train ids by hand, for the raw ids in the miniature.
CADIS = {
    1: {0: 0, 4: 4, 5: 5, 6: 6, 7: 7, 9: 7, 12: 7, 13: 7, 14: 7, 28: 7, 35: 7},
    2: {0: 0, 4: 4, 5: 5, 6: 6, 7: 7, 9: 8, 12: 10, 13: 11, 14: 12, 28: 10, 35: 255},
    3: {0: 0, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9, 12: 12, 13: 13, 14: 14, 28: 255, 35: 255},
}


@pytest.mark.parametrize("subfolder", ["segmentation", "."])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_cadis(root, task, subfolder):
    raw = miniatures.cadis(root, subfolder=subfolder)
    truth = {path: np.vectorize(CADIS[task].get)(label) for path, label in raw.items()}
    records = {s: assert_labels(f"cadis_task{task}_{s}", truth) for s in ("train", "val", "test", "valtest")}
    assert {s: len(r) for s, r in records.items()} == {"train": 19, "val": 3, "test": 3, "valtest": 6}
    files = {s: {r["file_name"] for r in rs} for s, rs in records.items()}
    assert not files["train"] & files["valtest"] and files["val"] | files["test"] == files["valtest"]


def test_cadis_groups():
    groups = {t: MetadataCatalog.get(f"cadis_task{t}_val").class_groups for t in (1, 2, 3)}
    assert groups[1] == {
        "anatomies": ["Pupil", "Iris", "Skin", "Cornea"],
        "tools": ["Instrument"],
        "rare": ["Hand"],
    }
    assert groups[2]["rare"] == [
        "Tissue Forceps", "Primary Knife", "Lens Injector", "Secondary Knife", "Cap. Forceps",
    ]  # fmt: skip
    assert [len(groups[3][g]) for g in ("anatomies", "tools", "rare")] == [4, 18, 11]


def test_cadis_without_blacklisted_frames(root):
    miniatures.cadis(root)
    with pytest.raises(FileNotFoundError, match=r"no list of blacklisted frames.*data\.csv"):
        DatasetCatalog.get("cadis_task2_train_clean")
    miniatures.cadis(root, blacklist=True)
    names = {
        s: {r["image_id"].split("_")[0] for r in DatasetCatalog.get(f"cadis_task2_{s}")}
        for s in ("train", "train_clean", "test", "test_clean", "val", "val_clean")
    }
    assert names["train"] - names["train_clean"] == {"Video3"}
    assert names["test"] - names["test_clean"] == {"Video2"}
    assert names["val"] == names["val_clean"]  # video 5 has a 2: small errors, kept


@pytest.mark.parametrize(
    ("row", "message"), [("Images/Video3_frame000090.png,yes", "line 3: blacklisted is 'yes', expected a number")]
)
def test_cadis_list_that_is_damaged(root, row, message):
    miniatures.cadis(root)
    (root / "cadis" / "data.csv").write_text(f"img_path,blacklisted\nImages/Video1_frame000090.png,0\n{row}\n")
    with pytest.raises(ValueError, match=rf"data\.csv, {message}"):
        DatasetCatalog.get("cadis_task2_train_clean")


def test_encoding_follows_the_files(root):
    miniatures.ade20k(root)
    assert_labels("ade20k_150_val", miniatures.ade20k(root))
    truth = miniatures.ade20k(root, shifted=True, folder="annotations")
    assert_labels("ade20k_150_val", truth)


def test_labels_of_something_else_are_an_error(root):
    for path in miniatures.ade20k(root):
        miniatures.Image.new("L", (64, 48), 200).save(path)
    with pytest.raises(ValueError, match=r"fit no known encoding .*value 200 first in .*ADE_val"):
        DatasetCatalog.get("ade20k_150_val")

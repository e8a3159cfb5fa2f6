from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scipy.io import savemat

from d2_contrast.config import default_config, load_config
from d2_contrast.data import read_label, register_folders


@pytest.fixture
def root(tmp_path, monkeypatch, forget_datasets):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for i, sub in enumerate(["", "deep/er/"]):
        for kind in ("images", "labels"):
            (tmp_path / "garden" / kind / sub).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / f"garden/images/{sub}{i}.jpg")
        Image.fromarray(np.full((4, 6), i, np.uint8)).save(tmp_path / f"garden/labels/{sub}{i}.png")
    return tmp_path


def entry(changes=(), **more):
    full = {
        "name": "garden",
        "images": "garden/images",
        "labels": "garden/labels",
        "classes": ["lawn", "path"],
        **dict(changes),
        **more,
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
        register_folders([entry(classes=["lawn", "bed"])])
    with pytest.raises(ValueError, match="another dataset named 'shapes_val'"):
        register_folders([entry(name="shapes_val")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"'garden'.*expected the keys .*'images'.*found \['classes', 'labels', 'name'\]"),
        ({"lables": "x"}, r"'garden'.*'lables'"),
        ({True: "x"}, r"'garden'.*found \[True, "),  # the key on in yaml
        ({"name": 2024}, r"entry 2024: name is 2024, expected text"),
        ({"name": " "}, r"entry ' ': name is ' ', expected text"),
        ({"images": ["a", "b"]}, r"'garden': images is \['a', 'b'\], expected text"),
        ({"labels": False}, r"'garden': labels is False, expected text .*leave the key out"),
        ({"label_suffix": "_mask"}, r"'garden': label_suffix is '_mask', expected .*_mask\.png"),
        ({"label_suffix": ".JPG"}, r"'garden': label_suffix is '\.JPG', expected .*JPEG"),
        ({"label_suffix": 3}, r"'garden': label_suffix is 3, expected text"),
        ({"classes": []}, r"'garden': classes must be a list of names"),
        ({"classes": {0: "lawn", 1: "path"}}, r"'garden': classes must be a list of names.*found \{0: 'lawn'"),
        ({"classes": 2}, r"'garden': classes must be a list of names.*found 2"),
        ({"classes": ["lawn"]}, r"'garden' has 1 class to learn \(lawn;.*background"),
        ({"classes": ["a", 3]}, r"'garden': the name of class 1 is 3, expected text.*quotes"),
        ({"classes": ["a", False]}, r"'garden': the name of class 1 is False, expected text.*quotes"),
        ({"classes": ["a", None]}, r"'garden': the name of class 1 is None, expected text"),
        ({"classes": ["a", ["b"]]}, r"'garden': the name of class 1 is \['b'\], expected text"),
        ({"classes": ["a", ""]}, r"'garden': the name of class 1 is '', expected text"),
        ({"classes": ["a", "b", "a"]}, r"'garden': classes 0 and 2 are both named 'a'"),
        ({"classes": ["a", {"name": "b", "colour": 1}]}, r"'garden': classes must be .*class 1 is .*'colour'"),
        ({"classes": ["a", {"name": "b", "values": 3}]}, r"'garden': either all classes have a values entry or none"),
        (
            {"classes": [{"name": n, "color": "red"} for n in "ab"]},
            r"class 'a' has the colour 'red', expected red, green",
        ),
        ({"classes": [{"name": n, "color": [0, 1]} for n in "ab"]}, r"class 'a' has the colour \[0, 1\]"),
        ({"classes": [{"name": n, "color": [0, 300, 0]} for n in "ab"]}, r"colour \[0, 300, 0\], .*from 0 to 255"),
        ({"classes": [{"name": n, "color": [0, 0.5, 1]} for n in "ab"]}, r"colour \[0, 0\.5, 1\], .*from 0 to 255"),
        (
            {"classes": [{"name": n, "values": "12"} for n in "ab"]},
            r"values of class 'a' are '12', expected whole numbers",
        ),
        (
            {"classes": [{"name": n, "values": [1.0]} for n in "ab"]},
            r"values of class 'a' are \[1\.0\], expected whole",
        ),
        (
            {"classes": [{"name": n, "values": [True]} for n in "ab"]},
            r"values of class 'a' are \[True\], expected whole",
        ),
        ({"classes": [{"name": n, "values": -1} for n in "ab"]}, r"values of class 'a' are -1, expected .* 0 to 65535"),
        ({"classes": [{"name": n, "values": 65536} for n in "ab"]}, r"are 65536, expected .* 0 to 65535"),
        ({"classes": [{"name": n, "values": []} for n in "ab"]}, r"class 'a' has an empty list of values"),
        ({"classes": [{"name": n, "values": [3, 3]} for n in "ab"]}, r"\[3, 3\], which has 3 twice"),
        ({"classes": [{"name": n, "values": 3} for n in "ab"]}, r"label value 3 has two meanings, 'b' and 'a'"),
        ({"ignore_values": [1]}, r"'garden': label value 1 has two meanings, 'path' and in ignore_values"),
        ({"ignore_values": "255"}, r"'garden': ignore_values are '255', expected whole numbers from 0 to 65535"),
        ({"ignore_values": [0.5]}, r"'garden': ignore_values are \[0\.5\]"),
        ({"ignore_values": None, "groups": ["rare"]}, r"'garden' has the groups \['rare'\]: expected group names"),
        ({"groups": {"rare": ["tree"]}}, r"'garden': the group 'rare' has the class 'tree', there are .*lawn"),
        ({"groups": {"rare": "path"}}, r"'garden': the group 'rare' is 'path', expected a name with a list"),
        ({"groups": {"rare": []}}, r"'garden': the group 'rare' is \[\], expected a name with a list"),
        ({"groups": {1: ["path"]}}, r"'garden': the group 1 is \['path'\], expected a name with a list"),
        ({"groups": {"rare": ["path", "path"]}}, r"'garden': the group 'rare' has the class 'path' twice"),
    ],
)
def test_wrong_entries_are_named(root, changes, message):
    known = set(DatasetCatalog)
    with pytest.raises(ValueError, match=f"^DATASETS.FOLDERS.*{message}"):
        register_folders([entry(changes)])
    assert set(DatasetCatalog) == known


@pytest.mark.parametrize("entries", [None, "garden", {"name": "garden"}, ["garden"], [None]])
def test_entries_are_a_list_of_mappings(entries):
    with pytest.raises(ValueError, match=r"DATASETS\.FOLDERS.*expected a (list of datasets, each a )?mapping"):
        register_folders(entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b: [\n", r"classes in .*names\.yaml cannot be read.*line 3"),
        ("- gr\xe4s\n".encode("latin-1"), r"classes in .*names\.yaml cannot be read.*line 1: byte 0xe4 is not UTF-8"),
        (b"lawn\npath\n", r"classes in .*names\.yaml must be a list of names.*after a dash.*'lawn path'"),
        (b"names: [lawn, path]\n", r"classes in .*names\.yaml must be a list of names.*found \{'names'"),
        (b"", r"classes in .*names\.yaml must be a list of names.*found None"),
        (b"- on\n- off\n", r"the name of class 0 is True, expected text; in yaml, .* need quotes"),
    ],
)
def test_wrong_files_of_classes_are_named(root, content, message):
    (root / "names.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"^DATASETS.FOLDERS.*'garden'.*{message}"):
        register_folders([entry(classes="names.yaml")])


def test_file_of_classes_that_is_not_there(root):
    with pytest.raises(FileNotFoundError, match=r"'garden': classes is 'lawn', but there is no file .*lawn: expected"):
        register_folders([entry(classes="lawn")])
    with pytest.raises(ValueError, match=r"'garden': classes in .*garden cannot be read.* is a folder"):
        register_folders([entry(classes="garden")])


def test_file_of_classes_with_a_byte_order_mark(root):
    (root / "names.yaml").write_bytes("- gräs\n- väg\n".encode("utf-8-sig"))
    register_folders([entry(classes="names.yaml")])
    assert MetadataCatalog.get("garden").stuff_classes == ["gräs", "väg"]


def layout(root, images, labels):
    """Files of a folder named both; an image is gray 10 times its number, label map i is all i."""
    (root / "both").mkdir()
    for kind, names in ((10, images), (1, labels)):
        for i, name in enumerate(names):
            path = root / "both" / name
            path.parent.mkdir(exist_ok=True)
            array = np.full((4, 6) if kind == 1 else (4, 6, 3), kind * i, np.uint8)
            Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("images", "labels", "changes"),
    [
        (["0.jpg", "1.jpg"], ["0.png", "1.png"], {}),
        (["0.jpg", "1.jpg"], ["0.png", "1.png"], {"labels": "both/../both/"}),
        (["0.jpg", "1.jpg"], ["0_mask.png", "1_mask.png"], {"label_suffix": "_mask.png"}),
        (["0.png", "1.png"], ["0_mask.png", "1_mask.png"], {"label_suffix": "_mask.png"}),
        (["0.png", "1.png"], ["0.label.png", "1.label.png"], {"label_suffix": ".label.png"}),
        (["0.tif", "1.tif"], ["0/mask.png", "1/mask.png"], {"label_suffix": "/mask.png"}),
        (["0.jpg", "1.jpg"], ["masks/0.png", "masks/1.png"], {"labels": "both/masks"}),
        (["0.jpg", "a_mask.png"], ["0_mask.png", "a_mask_mask.png"], {"label_suffix": "_mask.png"}),
        (["in/0.jpg", "in/1.jpg"], ["0.png", "1.png"], {"images": "both/in"}),
    ],
)
def test_images_and_labels_in_one_folder(root, images, labels, changes):
    layout(root, images, labels)
    register_folders([entry(**{"images": "both", "labels": "both", **changes})])
    records = DatasetCatalog.get("garden")
    assert [r["file_name"] for r in records] == [str(root / "both" / name) for name in images]
    for i, record in enumerate(records):
        assert (read_label(record["sem_seg_file_name"], MetadataCatalog.get("garden")) == i).all()


def test_labels_whose_image_is_missing_are_no_images(root):
    layout(root, ["0.jpg"], ["0_mask.png", "1_mask.png"])
    register_folders([entry(images="both", labels="both", label_suffix="_mask.png")])
    assert [Path(r["file_name"]).name for r in DatasetCatalog.get("garden")] == ["0.jpg"]


def test_image_that_would_be_its_own_label(root):
    layout(root, ["0.jpg"], ["0.png", "1.png"])
    register_folders([entry(images="both", labels="both")])
    with pytest.raises(ValueError, match=r"'garden': .*both/1\.png would be its own label.*label_suffix is '\.png'"):
        DatasetCatalog.get("garden")


def test_two_images_of_one_label(root):
    Image.new("RGB", (6, 4)).save(root / "garden/images/0.tif")
    register_folders([entry()])
    with pytest.raises(ValueError, match=r"'garden': .*0\.jpg and .*0\.tif would have the same label map, .*0\.png"):
        DatasetCatalog.get("garden")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "garden/images/0.jpg"}, r"0\.jpg is a file, not a folder"),
        ({"images": "nowhere"}, r"there is no folder .*nowhere"),
        ({"images": "empty"}, r"empty has no images \(\.bmp, "),
        ({"labels": "nowhere"}, r"there is no folder .*nowhere, which entry 'garden' names as its labels"),
    ],
)
def test_folders_that_are_none(root, changes, message):
    (root / "empty").mkdir()
    (root / "empty" / "Thumbs.db").write_bytes(b"x")
    register_folders([entry(**changes)])
    with pytest.raises(FileNotFoundError, match=rf"dataset 'garden' is not there: .*{message}.*DETECTRON2_DATASETS"):
        DatasetCatalog.get("garden")


@pytest.mark.parametrize(("count", "suffix", "first", "ignored"), [(300, ".png", 0, 65535), (459, ".mat", 1, 0)])
def test_more_classes_than_8_bits_hold(root, count, suffix, first, ignored):
    """Train ids in 16 bits, and raw ids from 1 on in MATLAB files, as the original PASCAL-Context has them."""
    train_ids = np.arange(count).reshape(3, -1)
    raw = np.concatenate([train_ids + first, np.full((1, count // 3), ignored)]).astype(np.uint16)
    for kind in ("images", "labels"):
        (root / "wide" / kind).mkdir(parents=True)
    Image.new("RGB", raw.shape[::-1]).save(root / "wide/images/0.png")
    if suffix == ".mat":
        savemat(root / "wide/labels/0.mat", {"LabelMap": raw})
        classes = [{"name": f"class {i}", "values": i + 1} for i in range(count)]
    else:
        Image.fromarray(raw).save(root / "wide/labels/0.png")
        classes = [f"class {i}" for i in range(count)]
    files = {"images": "wide/images", "labels": "wide/labels", "label_suffix": suffix}
    register_folders([entry(files, classes=classes, ignore_values=[ignored] if first else None)])
    metadata = MetadataCatalog.get("garden")
    assert metadata.ignore_label == 65535
    (record,) = DatasetCatalog.get("garden")
    label = read_label(record["sem_seg_file_name"], metadata)
    np.testing.assert_array_equal(label[:3], train_ids)
    assert (label[3] == 65535).all()


def test_example_of_the_documentation(root):
    repository = Path(__file__).parents[2]
    page = (repository / "docs" / "custom_dataset.md").read_text()
    config, classes, masks = (block.split("```")[0] for block in page.split("```yaml\n")[1:])
    config = config.replace("_BASE_: configs", f"_BASE_: {repository}/configs")
    (root / "garden.yaml").write_text(config)
    cfg = load_config(str(root / "garden.yaml"))
    register_folders(cfg.DATASETS.FOLDERS)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(MetadataCatalog.get(name).stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    register_folders([entry(name="other", **yaml.safe_load(classes))])
    assert MetadataCatalog.get("other").stuff_classes == ["lawn", "path"]
    register_folders([entry(name="masks", **yaml.safe_load(masks))])
    assert MetadataCatalog.get("masks").label_encodings == {"values of the config": {0: 0, 255: 1}}


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_images_by_a_list(root, where):
    """Below the folders of the entry; the label of a line goes before label_suffix."""
    Image.fromarray(np.full((4, 6), 1, np.uint8)).save(root / "garden/labels/other.png")
    path = root / "garden/list.txt"
    path.write_text("deep/er/1.jpg\r\n\n0.jpg\tother.png\n", "utf-8")
    files = "garden/list.txt" if where == "relative" else str(path)
    register_folders([entry(files=files), entry(name="twice", files="garden/twice.txt")])
    (root / "garden/twice.txt").write_text("0.jpg\n0.jpg\n")
    with pytest.raises(ValueError, match=r"'twice': .*0\.jpg is there twice"):
        DatasetCatalog.get("twice")
    records = DatasetCatalog.get("garden")
    assert [(r["file_name"], r["sem_seg_file_name"]) for r in records] == [
        (str(root / "garden/images/deep/er/1.jpg"), str(root / "garden/labels/deep/er/1.png")),
        (str(root / "garden/images/0.jpg"), str(root / "garden/labels/other.png")),
    ]


def test_files_that_are_the_same_under_two_paths(root):
    for i, text in enumerate(["0.jpg\n../images/0.jpg\n", "0.jpg\ndeep/er/1.jpg\tdeep/../0.png\n"]):
        (root / f"list{i}.txt").write_text(text)
        register_folders([entry(name=f"garden{i}", files=f"list{i}.txt")])
    with pytest.raises(ValueError, match=r"images/0\.jpg is there twice"):
        DatasetCatalog.get("garden0")
    with pytest.raises(ValueError, match=r"0\.jpg and .*1\.jpg would have the same label map"):
        DatasetCatalog.get("garden1")


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (None, {}, "there is no file .*list.txt"),
        ("\n", {}, "list.txt names no images: expected their paths below .*garden/images, one a line"),
        (
            "0.jpg\n1.jpg\ta\tb\n",
            {},
            "list.txt, line 2: expected the path of an image, or that and the path of its label",
        ),
        ("0.jpg\ta.png\n", {"labels": None}, "list.txt, line 1: expected the path of an image, found"),
        ("0.jpg\ngr\udcfcn.jpg\n", {}, "list.txt, line 2: .* is not UTF-8, and there is no file of this name: save"),
    ],
)
def test_lists_that_are_wrong(root, text, changes, message):
    if text is not None:
        (root / "list.txt").write_text(text, "utf-8", "surrogateescape")
    register_folders([entry(changes, files="list.txt")])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        DatasetCatalog.get("garden")

import miniatures
import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_contrast.check import main


@pytest.fixture
def root(tmp_path, monkeypatch, forget_datasets):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


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


def test_binary_masks_of_0_and_255(garden, capsys):
    """The thing is 255, which is ignored unless said otherwise: no class is left to learn."""
    root, arguments = garden
    for i in range(3):
        mask = np.zeros((8, 10), np.uint8)
        mask[:2] = 255
        Image.fromarray(mask).save(root / f"garden/labels/{i}.png")
    config = yaml.safe_load((root / "garden.yaml").read_text())
    (entry,) = config["DATASETS"]["FOLDERS"]
    entry.update(name="masks", classes=["background", "thing"])
    (root / "garden.yaml").write_text(yaml.dump(config))
    arguments[0] = "masks"
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "No problems" not in out and out.endswith("1 problem\n")
    assert (
        "No pixel in the labels of masks is of class 'thing' (1 of 2 classes), while 25.0% of all pixels are ignored "
        "(label value 255): should they be thing?"
    ) in out

    entry.update(
        name="right", classes=[{"name": "background", "values": 0}, {"name": "thing", "values": 255}], ignore_values=[]
    )
    (root / "garden.yaml").write_text(yaml.dump(config))
    assert main(["right", *arguments[1:]]) == 0
    assert "No problems" in capsys.readouterr().out


def test_class_that_never_occurs_is_a_warning(garden, capsys):
    root, arguments = garden
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(root / "garden/labels/0.png")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Warning: No pixel in the labels of garden is of class 'bed' (1 of 3 classes)\n0 problems\n" in out


@pytest.mark.parametrize("second", ["same", "unused", "other"])
def test_palettes_that_differ_are_a_warning(second, garden, capsys):
    """Some editors number the colours that a file has. Colours of values that no pixel has may differ."""
    root, arguments = garden
    colors = {"same": [0, 0, 0, 90, 0, 0], "unused": [9, 9, 9, 90, 0, 0], "other": [0, 0, 0, 0, 80, 0]}
    for i, palette in ((1, colors["same"]), (2, colors[second])):
        image = Image.fromarray(np.ones((8, 10), np.uint8), mode="P")
        image.putpalette(palette)
        image.save(root / f"garden/labels/{i}.png")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    if second == "other":
        files = [root / f"garden/labels/{i}.png" for i in (1, 2)]
        assert (
            f"Warning: The value 1 is the colour (90, 0, 0) in the palette of {files[0]}, (0, 80, 0) in that of "
            f"{files[1]}: "
        ) in out
    else:
        assert "No problems" in out


def test_ignored_class_is_no_class_without_pixels(root, capsys):
    for kind, array in (("image", np.zeros((4, 6, 3))), ("label", np.arange(24).reshape(4, 6) % 3)):
        Image.fromarray(array.astype(np.uint8)).save(root / f"{kind}.png")
    record = {"file_name": str(root / "image.png"), "sem_seg_file_name": str(root / "label.png")}
    DatasetCatalog.register("plain", lambda: [record])
    MetadataCatalog.get("plain").set(stuff_classes=["nothing", "a", "b"], ignore_label=0)
    assert main(["plain", "--output", str(root)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["0", "nothing", "0.00%", "0.000%"],
        ["2", "b", "100.00%", "33.333%"],
        ["(ignored)", "100.00%", "33.333%"],
    ):
        assert row in rows
    assert ["No", "problems"] in rows


def test_pictures_go_to_the_output_folder(garden, capsys, monkeypatch):
    root, arguments = garden
    config = yaml.safe_load((root / "garden.yaml").read_text())
    config["DATASETS"]["FOLDERS"][0]["name"] = "mine/../garden 1"
    (root / "garden.yaml").write_text(yaml.dump(config))
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    assert main(["mine/../garden 1", "--config-file", str(root / "garden.yaml")]) == 0
    files = [p.relative_to(root / "here").as_posix() for p in (root / "here").rglob("*") if p.is_file()]
    assert files == ["output/check/mine_.._garden_1/browse.png"]
    assert f"Samples: {files[0]}" in capsys.readouterr().out


def test_files_that_cannot_be_used_do_not_stop_the_check(garden, capsys, monkeypatch):
    """Too large, 32 bits deep, several channels: each is listed, and the last image is checked, too."""
    root, arguments = garden
    Image.fromarray(np.zeros((8, 10), np.float32)).save(root / "garden/images/0.tif")
    (root / "garden/images/0.png").unlink()
    Image.new("RGB", (30, 30)).save(root / "garden/images/1.png")
    Image.fromarray(np.random.RandomState(0).randint(0, 9, (8, 10, 3), np.uint8)).save(root / "garden/labels/2.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back afterwards
    assert main([arguments[0], "INPUT.MAX_PIXELS", "400", *arguments[1:]]) == 1
    out = capsys.readouterr().out
    for part in (
        "0.tif: the pixels of this image have Pillow's mode 'F'",
        "1.png: this image is too large",
        "labels/2.png: a label map has one channel",
    ):
        assert part in out
    assert out.endswith("3 problems\n")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_pipeline_that_fails_is_one_of_the_problems(garden, capsys, monkeypatch, on_error):
    """Nothing is noted in OUTPUT_DIR, where a run would take it for its own."""
    root, arguments = garden
    pipeline = {"__class_fullname__": "RandomCrop", "height": 100, "width": 100, "p": 1.0}
    (root / "pipeline.yaml").write_text(yaml.dump({"__version__": "2", "transform": pipeline}))
    (root / "garden/images/2.png").write_bytes(b"damaged")
    monkeypatch.chdir(root)
    options = [
        "INPUT.ALBUMENTATIONS",
        "pipeline.yaml",
        "DATALOADER.ON_ERROR",
        on_error,
        "OUTPUT_DIR",
        str(root / "run"),
    ]
    assert main([arguments[0], *options, *arguments[1:]]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "images/2.png: cannot read this image" in lines[-3]
    assert lines[-2].startswith(
        "No samples are drawn: INPUT.ALBUMENTATIONS pipeline.yaml cannot be applied to an image"
    )
    assert lines[-1] == "2 problems" and not (root / "run").exists()


def test_300_classes(garden, capsys):
    root, arguments = garden
    label = np.arange(300, dtype=np.uint16).reshape(20, 15)
    for i in range(3):
        Image.new("RGB", (15, 20)).save(root / f"garden/images/{i}.png")
        Image.fromarray(label).save(root / f"garden/labels/{i}.png")
    config = yaml.safe_load((root / "garden.yaml").read_text())
    config["DATASETS"]["FOLDERS"][0]["classes"] = [f"class {i}" for i in range(300)]
    config["INPUT"] = {"CROP": {"ENABLED": True, "SIZE": [20, 15], "SINGLE_CATEGORY_MAX_AREA": 0.75}}
    (root / "garden.yaml").write_text(yaml.dump(config))
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["299", "class", "299", "100.00%", "0.333%"] in rows and ["(ignored)", "0.00%", "0.000%"] in rows


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
    assert "cityscapes_19_val has 2 images, published: 500\n1 problem\n" in out
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
    with pytest.raises(SystemExit, match="2"):
        main([name])
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DATASETS: {FOLDERS: [{name: x}]}", "DATASETS.FOLDERS, entry 'x': expected the keys"),
        ("DATASETS: {FOLDERS: [{name: x, images: a, classes: gone.yaml}]}", "there is no file"),
        ("DATASETS: {FOLDER: []}", "Non-existent config key: DATASETS.FOLDER"),
    ],
)
def test_description_that_is_wrong(root, capsys, text, message):
    (root / "x.yaml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["x", "--config-file", str(root / "x.yaml")])
    assert message in capsys.readouterr().err

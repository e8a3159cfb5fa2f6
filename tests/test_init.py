"""The proposed configs really describe the folders, and the proposed commands run."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from annotation_exports import draw_label, write_image, write_label, write_pairs
from detectron2.data import MetadataCatalog
from PIL import Image

from d2_contrast import check, init, predict
from d2_contrast.config import load_config
from d2_contrast.data import load_dicts, read_label, register_folders
from d2_contrast.engine.setup import check_datasets

COLORS = [(0, 0, 0), (120, 180, 80), (190, 170, 140)]
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nlawn:120,180,80::\npath:190,170,140::\n"


@pytest.fixture
def here(tmp_path, monkeypatch, forget_datasets):
    """A working folder beside the data; datasets are forgotten afterwards."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def propose(*arguments):
    """Run the verb and register what the config that it wrote describes; returns the config."""
    assert init.main(list(map(str, arguments))) == 0
    (config,) = Path().glob("*.yaml")
    cfg = load_config(str(config))
    register_folders(cfg.DATASETS.FOLDERS)
    check_datasets(cfg)
    return cfg


def content(name):
    """The label map as train ids of each image of a dataset."""
    metadata = MetadataCatalog.get(name)
    return {Path(d["file_name"]): read_label(d["sem_seg_file_name"], metadata) for d in load_dicts(name)}


def test_a_config_for_two_folders(here, capsys):
    pairs = write_pairs(here / "garden", "images/{}.jpg", "labels/{}.png", count=10)
    cfg = propose(here / "garden/images", here / "garden/labels")
    assert cfg.DATASETS.TRAIN == ("garden_train",) and cfg.DATASETS.TEST == ("garden_val",)
    assert cfg.MODEL.BACKBONE.PRETRAINED and cfg.MODEL.TIMM.NAME and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.MODEL.CONTRAST.ENABLED and cfg.OUTPUT_DIR == "output/garden"
    assert cfg.INPUT.CROP.SIZE == [64, 64] and cfg.SOLVER.MAX_ITER == 1000 and cfg.TEST.EVAL_PERIOD == 200
    train, val = content("garden_train"), content("garden_val")
    assert len(train) == 8 and len(val) == 2 and {*train, *val} == {image for image, _ in pairs}
    for image, label in (train | val).items():
        np.testing.assert_array_equal(label, draw_label(int(image.stem)))
    out = capsys.readouterr().out
    assert "10 images of 40 x 48 pixels (height x width): 8 train, 2 val" in out and "class_2: 2 (" in out
    assert "Check: 2 of 10 images are held out to measure on" in out
    assert "  d2-contrast check garden_train --config-file garden.yaml\n" in out
    assert "  d2-contrast train --config-file garden.yaml\n" in out


def test_folders_that_say_the_split_need_no_lists(here, capsys):
    for split, start in (("train", 0), ("valid", 4), ("test", 6)):
        folder = here / "Beds.v2" / split
        write_pairs(folder, "{}_jpg.rf.1a.jpg", "{}_jpg.rf.1a_mask.png", count=2, start=start)
        (folder / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, lawn\n2, no\n")
    cfg = propose(here / "Beds.v2", "--name", "beds")
    assert [entry["name"] for entry in cfg.DATASETS.FOLDERS] == ["beds_train", "beds_val", "beds_test"]
    assert not any("files" in entry for entry in cfg.DATASETS.FOLDERS) and list(Path().iterdir()) == [Path("beds.yaml")]
    assert MetadataCatalog.get("beds_train").stuff_classes == ["background", "lawn", "no"]
    for name, start in (("beds_train", 0), ("beds_val", 4), ("beds_test", 6)):
        labels = content(name)
        assert [image.name for image in labels] == [f"{start + i}_jpg.rf.1a.jpg" for i in range(2)]
        for i, label in enumerate(labels.values()):
            np.testing.assert_array_equal(label, draw_label(start + i))
    assert "Check:" not in capsys.readouterr().out


def test_colors_become_ids(here, capsys):
    """An export of CVAT: colours, whose names are in labelmap.txt."""
    root = here / "cvat"
    write_pairs(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", colors=COLORS)
    (root / "labelmap.txt").write_text(LABELMAP)
    propose(root)
    metadata = MetadataCatalog.get("cvat_train")
    assert metadata.stuff_classes == ["background", "lawn", "path"]
    assert metadata.stuff_colors == [list(color) for color in COLORS]
    for image, label in (content("cvat_train") | content("cvat_val")).items():
        np.testing.assert_array_equal(label, draw_label(int(image.stem)))
    with Image.open("cvat_labels/0.png") as written, Image.open(root / "SegmentationClass/0.png") as source:
        assert written.mode == "P"
        np.testing.assert_array_equal(np.asarray(written.convert("RGB")), np.asarray(source))
    assert "with ids instead of colours, to " in capsys.readouterr().out


@pytest.mark.parametrize("values", [(0, 255), (3, 70, 255), (1, 2, 3), (0, 1, 200)])
def test_values_become_train_ids(values, here):
    write_pairs(here / "masks", "{}.jpg", "{}_mask.png", values=values)
    propose(here / "masks", "--name", "own")
    classes = values[:-1] if values == (3, 70, 255) else values
    expected = {value: i for i, value in enumerate(classes)}
    for image, label in (content("own_train") | content("own_val")).items():
        raw = draw_label(int(image.stem), values)
        np.testing.assert_array_equal(label, np.vectorize(lambda v: expected.get(v, 255))(raw))


def test_pairs_that_no_folder_describes(here):
    """Other names on both sides, and an image without a label map among them."""
    write_pairs(here / "set", "fotos/img_{}.png", "karten/mask_{}.png", count=6)
    write_image(here / "set/fotos/img_77.png")
    propose(here / "set/fotos", here / "set/karten")
    labels = content("fotos_train") | content("fotos_val")
    assert len(labels) == 6
    for image, label in labels.items():
        np.testing.assert_array_equal(label, draw_label(int(image.stem.removeprefix("img_"))))


def test_names_that_are_not_utf8(here):
    """As of files from an archive that an old system has made; Python holds the byte 0xfc so."""
    write_pairs(here / "beds", "gr\udcfcn_{}.jpg", "gr\udcfcn_{}_mask.png")
    propose(here / "beds")
    assert b"gr\xfcn_0.jpg\n" in Path("beds_train.txt").read_bytes() + Path("beds_val.txt").read_bytes()
    labels = content("beds_train") | content("beds_val")
    assert len(labels) == 5
    for image, label in labels.items():
        np.testing.assert_array_equal(label, draw_label(int(image.stem[-1])))


@pytest.mark.parametrize(
    ("size", "count", "crop", "iterations", "windows"),
    [
        ((480, 360), 10, [352, 480], 1000, False),
        ((50, 40), 400, [64, 64], 4000, False),
        ((2300, 700), 2, [512, 512], 1000, True),
    ],
)
def test_numbers_follow_the_images(size, count, crop, iterations, windows, here):
    for kind in ("images", "labels"):
        (here / kind).mkdir()
    for i in range(count):
        Image.new("RGB", size).save(here / f"images/{i}.png")
        label = Image.new("L", size)
        label.paste(1, (0, 0, 9, 9))
        label.save(here / f"labels/{i}.png")
    cfg = propose(here / "images", here / "labels", "--name", "sizes")
    assert cfg.INPUT.CROP.SIZE == crop and cfg.SOLVER.MAX_ITER == iterations
    assert cfg.TEST.SLIDING_WINDOW.ENABLED == windows and (not windows or cfg.TEST.SLIDING_WINDOW.SIZE == crop)


def test_nothing_is_overwritten_unasked(here, capsys):
    write_pairs(here / "garden", "images/{}.jpg", "labels/{}.png")
    arguments = [str(here / "garden")]
    assert init.main(arguments) == 0
    before = {path: path.read_text() for path in Path().iterdir()}
    assert set(map(str, before)) == {"garden.yaml", "garden_train.txt", "garden_val.txt"}
    Path("garden.yaml").write_text("# mine\n")
    with pytest.raises(SystemExit, match="2"):
        init.main(arguments)
    assert "garden.yaml is there already: name another file by --output, or give --overwrite" in capsys.readouterr().err
    assert Path("garden.yaml").read_text() == "# mine\n"
    assert init.main([*arguments, "--overwrite"]) == 0
    assert {path: path.read_text() for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["../garden", "--output", "garden.txt"], "expected the name of a config, such as garden.yaml"),
        (["../garden", "--name", "shapes"], "there is a dataset shapes_train in this project already"),
        (["../garden/images/0.jpg"], "0.jpg is a file, not a folder"),
    ],
)
def test_mistakes(arguments, message, here, capsys):
    write_pairs(here / "garden", "images/{}.jpg", "labels/{}.png")
    with pytest.raises(SystemExit, match="2"):
        init.main(arguments)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not list(Path().iterdir())


def test_what_would_end_a_training_is_left_out_and_said(here, capsys):
    write_pairs(here / "garden", "images/{}.jpg", "labels/{}.png", count=9)
    for i in (3, 5, 6):
        (here / f"garden/labels/{i}.png").write_bytes(b"cut")
    (here / "garden/images/2.jpg").write_bytes(b"cut")
    Image.new("L", (9, 7)).save(here / "garden/labels/4.png")
    propose(here / "garden")
    labels = content("garden_train") | content("garden_val")
    assert sorted(image.stem for image in labels) == ["0", "1", "7", "8"]
    out = capsys.readouterr().out
    assert out.count("Check: An image of a label map that cannot be read (") == 3
    assert "Check: 2 more images are left out for such reasons" in out


def test_sizes_that_differ_are_said(here, capsys):
    """A photo that the camera turned is upright for its label map."""
    pairs = write_pairs(here / "garden", "images/{}.jpg", "labels/{}.png", count=4)
    Image.new("L", (9, 7)).save(pairs[0][1])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(pairs[1][0]) as image:
        image.rotate(90, expand=True).save(pairs[1][0], exif=exif)
    propose(here / "garden")
    assert len(content("garden_train") | content("garden_val")) == 3
    expected = f"label map of another size ({pairs[0][1]} has 7 x 9 pixels, its image 40 x 48)"
    assert expected in capsys.readouterr().out


def test_the_proposed_commands_run(here, capsys):
    """In a folder of their own, and by the names that are printed; only what costs time or a download is changed."""
    write_pairs(here / "my garden", "images/{}.jpg", "labels/{}.png", count=6)
    program = [sys.executable, "-m", "d2_contrast.cli"]
    command = [*program, "init", str(here / "my garden"), "--name", "garden", "--output", "my garden.yaml"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""  # no warnings of dependencies
    steps = [shlex.split(line)[1:] for line in result.stdout.splitlines() if line.startswith("  d2-contrast ")]
    assert [step[0] for step in steps] == ["check", "train", "predict"]
    assert check.main(steps[0][1:]) == 0 and "No problems" in capsys.readouterr().out
    tiny = ["MODEL.BACKBONE.PRETRAINED", "False", "MODEL.TIMM.NAME", "resnet10t", "MODEL.UPER.OUT_CHANNELS", "8"]
    tiny += ["SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "VISUALIZE.NUM_IMAGES", "0"]
    tiny += ["VISUALIZE.TSNE_POINTS", "0", "MODEL.DEVICE", "cpu"]
    result = subprocess.run([*program, *steps[1], *tiny], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    results = json.loads(Path("output/garden/inference/garden_val/sem_seg_results.json").read_text())
    assert {"IoU-class_0", "IoU-class_1", "IoU-class_2"} <= set(results)
    assert predict.main(steps[2][1:]) == 0
    (label_map,) = Path("output/garden/predictions/labels").iterdir()  # of an image, not of the label maps beside them
    assert label_map.stem in Path("garden_val.txt").read_text()


def test_label_maps_are_not_needed_to_predict(here):
    write_pairs(here / "garden", "train/images/{}.jpg", "train/masks/{}.png")
    write_image(here / "garden/test/images/0.jpg")
    write_label(here / "garden/train/masks/lonely.png")
    propose(here / "garden")
    (sample,) = load_dicts("garden_test")
    assert sample["file_name"].endswith("garden/test/images/0.jpg") and "sem_seg_file_name" not in sample

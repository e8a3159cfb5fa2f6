"""The report of trained runs, read as a browser reads it."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from page_checks import Page, check
from PIL import Image
from tiny_runs import edit_config

from d2_contrast.analysis import common_dataset, load_runs, page_pictures
from d2_contrast.data import read_label
from d2_contrast.data.datasets.shapes_drawing import CLASSES
from d2_contrast.report import main

NAMES = ['<b>cross</b> & "entropy"', "'losses' {{ 1 + 1 }}"]


def show_pictures(config):
    config["VISUALIZE"].update(NUM_IMAGES=2, TSNE_POINTS=40)


@pytest.fixture(scope="module")
def report(trained_twins, tmp_path_factory):
    """The report of two runs with names that are no markup: their folders, the output, the page, and the figures."""
    output = tmp_path_factory.mktemp("report")
    folders = [Path(shutil.copytree(folder, output / folder.name)) for folder in trained_twins]
    edit_config(folders[1], show_pictures)
    assert main([*map(str, folders), "--names", *NAMES, "--output", str(output)]) == 0
    data = json.loads((output / "comparison" / "comparison.json").read_text())
    return folders, output, check((output / "report.html").read_text()), data


def test_parts(report):
    _, output, page, _ = report
    assert [text for level, text in page.headings if level == 2] == [
        "Settings",
        "Curves",
        "Classes",
        "Confusion",
        "Images",
        "Features",
        "Anchors of each scale",
        "Calibration",
    ]
    assert (output / "report.html").stat().st_size < 2_000_000
    files = {path.name for path in (output / "comparison").iterdir()}
    assert files >= {"comparison.md", "comparison.json", "tsne.png", "joint.png", "predictions.png", "anchors.png"}


def test_names_are_text(report):
    _, _, page, _ = report
    for name in [*NAMES, *CLASSES]:
        assert name in page.text
    assert page.headings[0][1].startswith(f"{NAMES[0]} and {NAMES[1]} on ")
    assert any(NAMES[0] in alt for alt in page.images)


def test_values_are_those_of_the_json(report):
    _, _, page, data = report
    one, other = (data["results"][name] for name in NAMES)
    scores = {row[0]: row[1:] for row in page.tables["Scores; ↓: smaller is better"]}
    assert scores["mIoU (%)"] == [
        f"{one['mIoU']:.2f}",
        f"{other['mIoU']:.2f}",
        f"{data['differences'][NAMES[1]]['mIoU']:+.2f}",
    ]
    errors = [data["calibration"][name]["ECE"] for name in NAMES]
    assert scores["ECE (%) ↓"] == [*(f"{x:.2f}" for x in errors), f"{errors[1] - errors[0]:+.2f}"]

    (classes,) = (rows for caption, rows in page.tables.items() if caption.startswith("IoU of each class"))
    assert {row[0] for row in classes[1:]} == set(CLASSES)
    for name, first, second, _, pixels in classes[1:]:
        expected = one[f"IoU-{name}"], other[f"IoU-{name}"], data["pixels"][name]
        assert [first, second, pixels] == ["-" if x is None else f"{x:.2f}" for x in expected]
    gains = [float(row[3]) for row in classes[1:] if row[3] != "-"]
    assert gains and gains == sorted(gains, reverse=True)
    groups = {row[0]: row for row in page.tables["Mean IoU of groups of classes (%)"]}
    assert groups["rare"][1:3] == ["heart, moon", f"{one['mIoU-rare']:.2f}"]
    assert ["MODEL.CONTRAST.ENABLED", "False", "True"] in page.tables["Settings that differ"]
    anchors = page.tables["Anchors of each scale at the end of training"]
    assert [row[:2] for row in anchors[1:]] == [[NAMES[1], scale] for scale in data["anchors"][NAMES[1]]]


def test_figures_by_hand(report):
    """Predict every image again, and derive from it by definition what the report says."""
    folders, _, _, data = report
    runs = load_runs(list(map(str, folders)), NAMES)
    dataset, dicts = common_dataset(runs)
    metadata = MetadataCatalog.get(dataset)
    wrong, changed, sure, right = {}, {}, {name: [] for name in NAMES}, {name: [] for name in NAMES}
    counts = np.zeros((2, len(CLASSES), len(CLASSES)))
    for entry in dicts:
        label = read_label(entry["sem_seg_file_name"], metadata)
        counted, classes = label != 255, []
        for run in runs:
            with torch.no_grad():
                p = run.model([run.mapper_for(dataset)(entry)])[0]["sem_seg"].double().softmax(0).numpy()
            classes.append(p.argmax(0))
            sure[run.name].append(p.max(0)[counted])
            right[run.name].append((classes[-1] == label)[counted])
            np.add.at(counts[len(classes) - 1], (label[counted], classes[-1][counted]), 1)
        file = entry["file_name"]
        wrong[file] = [100 * (c != label)[counted].mean() for c in classes]
        changed[file] = 100 * (classes[0] != classes[1])[counted].mean()

    for shown, rank in (("worst", {file: np.mean(w) for file, w in wrong.items()}), ("changed", changed)):
        files = [image["file"] for image in data[shown]]
        assert files == sorted(rank, key=rank.get, reverse=True)[:2]
        for image in data[shown]:
            assert list(image["wrong"].values()) == pytest.approx(wrong[image["file"]])
            assert image["changed"] == pytest.approx(changed[image["file"]])
    for name in NAMES:
        p, hit = np.concatenate(sure[name]), np.concatenate(right[name])
        bins = np.ceil(15 * p)
        gaps = [abs(hit[bins == b].sum() - p[bins == b].sum()) for b in range(1, 16)]
        assert data["calibration"][name]["ECE"] == pytest.approx(100 * sum(gaps) / len(p), abs=1e-3)
    shares = 100 * counts / np.maximum(counts.sum(2, keepdims=True), 1)
    for pair in data["confused"]:
        i, j = CLASSES.index(pair["label"]), CLASSES.index(pair["predicted"])
        assert i != j and list(pair["shares"].values()) == pytest.approx(shares[:, i, j])


def test_ignored_areas_are_striped(report):
    """The border of each picture of the embedded dataset is ignored: no class, error or entropy is seen there."""
    folders, output, _, data = report
    text = (output / "report.html").read_text()
    (uri,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]*: label" class="map">', text)[:1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB"))
    stripes = {tuple(color) for color in page_pictures.STRIPES}
    label = read_label(data["changed"][0]["file"].replace("/images/", "/labels/"), MetadataCatalog.get(data["dataset"]))
    assert (label == 255).any()
    assert {tuple(color) for color in picture[label == 255]} <= stripes
    assert not stripes & {tuple(color) for color in picture[label != 255]}


def test_one_run(trained_twins, tmp_path):
    folder = Path(shutil.copytree(trained_twins[0], tmp_path / "alone"))
    (folder / "metrics.json").unlink()
    assert main([str(folder), "--opts", "VISUALIZE.NUM_IMAGES", "1"]) == 0
    page = check((folder / "report.html").read_text())
    (classes,) = (rows for caption, rows in page.tables.items() if caption.startswith("IoU of each class"))
    assert classes[0] == ["class", "alone", "pixels (%)"]
    values = [float(row[1]) for row in classes[1:] if row[1] != "-"]
    assert values == sorted(values)
    headings = [text for _, text in page.headings]
    assert "Worst" in headings and "Most changed" not in headings
    for words in ("no metrics.json in the folder of this run", "There are no t-SNE maps", "logged anchors"):
        assert words in page.text
    assert ["SOLVER.MAX_ITER", "40000", "2"] in page.tables["Settings that differ from the defaults"]


def test_three_runs(twins, tmp_path):
    third = Path(shutil.copytree(twins[1], tmp_path / "third"))
    # Loading a run turns this off.
    edit_config(third, lambda config: config["MODEL"]["BACKBONE"].update(PRETRAINED=True))
    assert main([*map(str, twins), str(third)]) == 0
    page = check((third / "report.html").read_text())
    (classes,) = (rows for caption, rows in page.tables.items() if caption.startswith("IoU of each class"))
    assert classes[0][1:-1] == ["baseline", "contrast", "third", "contrast − baseline", "third − baseline"]
    assert all(row[2] == row[3] and row[4] == row[5] for row in classes[1:])
    data = json.loads((third / "comparison" / "comparison.json").read_text())
    assert set(data["differences"]) == {"contrast", "third"}
    assert data["settings"]["MODEL.BACKBONE.PRETRAINED"] == [False, False, True]
    assert "No images are shown" in page.text


def test_networks_without_a_map_in_common(twins, monkeypatch, capsys):
    def load(*args):
        runs = load_runs(*args)
        runs[0].model.backbone.output_shape = lambda: {"other": ShapeSpec(channels=8, stride=4)}
        return runs

    monkeypatch.setattr("d2_contrast.analysis.load_runs", load)
    edit_config(twins[1], show_pictures)
    assert main(list(map(str, twins))) == 0
    says = "Features are not measured: no map that is contrasted has the same name and stride in all of these networks."
    page = check((twins[1] / "report.html").read_text())
    assert says in page.text and "t-SNE" not in page.text and "Single feature maps" not in page.tables
    assert [row[0] for row in page.tables["Scores; ↓: smaller is better"]][:2] == ["score", "mIoU (%)"]
    assert f"## Features\n\n{says}\n\n" in (twins[1] / "comparison/comparison.md").read_text()
    data = json.loads((twins[1] / "comparison/comparison.json").read_text())
    assert data["features"]["strides"] == {} and data["results"]["baseline"]["mIoU"] is not None
    assert "neighbours" not in capsys.readouterr().out


def test_help_needs_no_torch():
    code = (
        "import sys; from d2_contrast.report import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: d2-contrast report" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_a_folder_without_a_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "holds no config.yaml" in error and len(error.splitlines()) == 1


def test_the_output_is_a_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), "--output", str(tmp_path / "mine.html")])
    assert end.value.code == 2 and not (tmp_path / "mine.html").exists()
    assert "mine.html: expected a folder, into which report.html is written" in capsys.readouterr().err


class TestPictures:
    def test_a_limit_for_all_together(self):
        noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3)).astype(np.uint8)
        found = page_pictures.embed({str(i): page_pictures.photo(noise) for i in range(4)}, 640, 300_000)
        assert len(found) == 4 and 100_000 < sum(map(len, found.values())) <= 300_000

    def test_maps_keep_their_colors(self):
        rng = np.random.default_rng(0)
        classes, counted = rng.integers(0, 300, (40, 60)), rng.random((40, 60)) < 0.9
        colors = rng.integers(0, 256, (300, 3)).astype(np.uint8)
        data, kind = page_pictures.class_map(classes, counted, colors)(640)
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert kind == "image/png" and (picture[counted] == colors[classes[counted]]).all()

    def test_smaller_maps_hold_no_new_class(self):
        classes = np.random.default_rng(0).choice([0, 2], (300, 500)).astype(np.uint16)
        colors = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
        data, _ = page_pictures.class_map(classes, np.ones(classes.shape, bool), colors)(50)
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert picture.shape == (30, 50, 3)
        assert {tuple(c) for c in picture.reshape(-1, 3)} == {(250, 0, 0), (0, 0, 250)}


class TestChecks:
    """What the checks of a page find."""

    whole = '<main><h1 id="a">x</h1><img src="data:," alt="y"><a href="#a">z</a></main>'

    def test_a_whole_page(self):
        assert check(self.whole).headings == [(1, "x")]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("data:,", "https://example.org/x.png"),
            ("#a", "#b"),
            ("</a>", ""),
            ("h1", "h2"),
            ('alt="y"', 'alt=""'),
            ("<main>", "<main><style>x { background: url(x.png) }</style>"),
            ("<main>", "<main><script>fetch('x')</script>"),
        ],
    )
    def test_a_broken_page(self, old, new):
        with pytest.raises(AssertionError):
            check(self.whole.replace(old, new))

    def test_markup_in_a_name(self):
        assert Page("<p>&lt;b&gt;</p>").text == "<b>"

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import MetadataCatalog
from PIL import Image

from d2_contrast.analysis import load_runs
from d2_contrast.data import SemSegMapper
from d2_contrast.evaluation import sample_features
from d2_contrast.evaluation.features import measure_map
from d2_contrast.features import main


def set_points(folder, points):
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["VISUALIZE"]["TSNE_POINTS"] = points
    path.write_text(yaml.dump(config))


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_two_runs(twins, capsys):
    set_points(twins[0], 80)
    assert main(list(map(str, twins))) == 0
    out = capsys.readouterr().out
    output = twins[0] / "features"
    text = (output / "features.md").read_text()
    assert text.removeprefix("# Features\n\n").strip() in out
    for name in ("features.md", "features.json", "tsne.png", "joint.png"):
        assert f"  {output / name}" in out.splitlines()
    data = json.loads((output / "features.json").read_text(), parse_constant=refuse)
    assert data["strides"] == {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert [list(stages) for stages in data["runs"].values()] == [["raw"], ["raw", "projected"]]
    assert list(data["runs"]["contrast"]["projected"]["scales"]) == [
        "p2 p3", "p2 p4", "p2 p5", "p3 p4", "p3 p5", "p4 p5",
    ]  # fmt: skip
    for name in ("tsne.png", "joint.png"):
        with Image.open(output / name) as image:
            assert min(image.size) > 500 and np.asarray(image.convert("L")).std() > 5

    # The figures are those of the vectors of each network, seen at the same positions.
    runs = load_runs(list(map(str, twins)))
    folders = runs[0].cfg.DATASETS.FOLDERS[0]
    dicts = [
        {"file_name": str(path), "sem_seg_file_name": f"{folders['labels']}/{path.name}"}
        for path in sorted(Path(folders["images"]).iterdir())
    ]
    metadata = MetadataCatalog.get(runs[0].cfg.DATASETS.TEST[0])
    seen = []
    for run in runs:
        raw, projected = sample_features(run.model, SemSegMapper(run.cfg, False), dicts, metadata, ["p3"])
        seen.append((raw["p3"].classes, raw["p3"].images))
        for stage, vectors in (("raw", raw), ("projected", projected)):
            for key, value in measure_map(vectors["p3"]).items() if vectors else ():
                found = data["runs"][run.name][stage]["maps"]["p3"][key]
                assert found == pytest.approx(value) or (found is None and np.isnan(value))
    np.testing.assert_equal(*seen)
    row = next(line for line in text.splitlines() if "5 nearest neighbours ↑" in line)
    value = data["runs"]["baseline"]["raw"]["maps"]["p3"]["neighbour_accuracy"]
    assert row.split("|")[4].strip() == f"{value:.2f}"
    # Six images allow no training on 20.
    assert data["runs"]["baseline"]["raw"]["maps"]["p2"]["few_shot_accuracy_20"] is None
    row = next(line for line in text.splitlines() if "20 images" in line)
    assert [cell.strip() for cell in row.split("|")[3:-1]] == ["-"] * 4


def test_one_run_and_chosen_maps(twins, tmp_path, capsys):
    output = tmp_path / "elsewhere" / "here"
    opts = ["--opts", "VISUALIZE.TSNE_POINTS", "0"]
    set_points(twins[0], 80)
    assert main([str(twins[0]), *opts, "--maps", "p5", "res2", "p2", "--output", str(output)]) == 0
    data = json.loads((output / "features.json").read_text())
    assert list(data["strides"].items()) == [("res2", 4), ("p2", 4), ("p5", 32)]
    assert list(data["runs"]["baseline"]["raw"]["scales"]) == ["p2 p5"]  # others are of different dimension
    assert "p2, p5" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["features.json", "features.md"]  # no points to draw


@pytest.mark.parametrize("labels", ["one class", "ignored"])
def test_labels_that_say_little(twins, labels, capsys):
    set_points(twins[0], 40)
    (run,) = load_runs([str(twins[0])])
    config = yaml.safe_load((twins[0] / "config.yaml").read_text())
    folders = config["DATASETS"]["FOLDERS"][0]
    folders["name"] = f"{folders['name']}_{labels.replace(' ', '_')}"
    folders["labels"] = str(twins[0] / "labels")
    config["DATASETS"].update(TRAIN=[folders["name"]], TEST=[folders["name"]])
    (twins[0] / "config.yaml").write_text(yaml.dump(config))
    (twins[0] / "labels").mkdir()
    for path in Path(folders["images"]).iterdir():
        value = 3 if labels == "one class" else 255
        Image.new("L", Image.open(path).size, value).save(twins[0] / "labels" / path.name)
    assert main([str(twins[0])]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "5 nearest neighbours ↑" in line)
    assert [cell.strip() for cell in row.split("|")[3:-1]] == ["-"] * 4
    data = json.loads((twins[0] / "features" / "features.json").read_text(), parse_constant=refuse)
    assert data["runs"]["baseline"]["raw"]["maps"]["p2"]["classes"] == (labels == "one class")


def test_errors_are_one_sentence(twins, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path / "nothing")], "holds no config.yaml"),
        ([str(twins[0]), "--maps", "res9"], "baseline has no feature map 'res9'"),
        ([str(twins[0]), "--dataset", "shape_val"], "dataset 'shape_val' is not registered"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        captured = capsys.readouterr()
        assert message in captured.err and len(captured.err.strip().splitlines()) == 1
        assert "|" not in captured.out

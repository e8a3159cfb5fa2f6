import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import edit_config

from d2_contrast.compare import main


def set_pictures(folder, images, points):
    edit_config(folder, lambda config: config["VISUALIZE"].update(NUM_IMAGES=images, TSNE_POINTS=points))


def results_of(folder):
    (path,) = folder.glob("inference/*/sem_seg_results.json")
    return json.loads(path.read_text())


def test_all_of_it(twins, capsys):
    set_pictures(twins[1], 2, 80)
    assert main(list(map(str, twins))) == 0
    out = capsys.readouterr().out.splitlines()
    output = twins[1] / "comparison"
    names = ["comparison.md", "comparison.json", "tsne.png", "joint.png", "predictions.png", "anchors.png"]
    assert out[-len(names) :] == [f"  {output / name}" for name in names]
    for name in names[2:]:
        with Image.open(output / name) as image:
            assert min(image.size) > 300 and np.asarray(image.convert("L")).std() > 5

    # Scores are those that train_net.py measured.
    data = json.loads((output / "comparison.json").read_text())
    for folder in twins:
        expected = results_of(folder)
        assert data["results"][folder.name].keys() == expected.keys()
        for key, value in expected.items():
            assert data["results"][folder.name][key] == (None if value is None else pytest.approx(value))
    one, other = (data["results"][folder.name] for folder in twins)
    assert data["differences"]["contrast"]["mIoU"] == pytest.approx(other["mIoU"] - one["mIoU"])
    assert sum(data["pixels"].values()) == pytest.approx(100)
    assert data["settings"]["MODEL.CONTRAST.ENABLED"] == [False, True]
    assert "MODEL.CONTRAST.LOG_PERIOD" not in data["settings"] and "OUTPUT_DIR" not in data["settings"]

    # The terminal ends with a table that says the same.
    def row(label):
        return [cell.strip() for cell in next(line for line in out if label in line).split("|")[2:-1]]

    assert row(" mIoU (%)") == [f"{one['mIoU']:.2f}", f"{other['mIoU']:.2f}", f"{other['mIoU'] - one['mIoU']:+.2f}"]
    assert row("mIoU-rare (%)")
    measures = [data["features"]["runs"][folder.name]["raw"]["maps"]["p4"]["neighbour_accuracy"] for folder in twins]
    assert row("p4 (stride 16)")[:2] == [f"{value:.2f}" for value in measures]

    text = (output / "comparison.md").read_text()
    for line in ("## Scores", "## Features", "## Pictures", "## Settings that differ"):
        assert line in text.splitlines()
    for name in names[2:]:
        assert f"]({name})" in text


def test_pictures_can_be_turned_off(twins, tmp_path):
    (twins[1] / "metrics.json").unlink()
    assert main([*map(str, twins), "--output", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"comparison.md", "comparison.json", "evaluation"}
    assert "## Pictures" not in (tmp_path / "out" / "comparison.md").read_text()


def test_results_of_runs_with_names_that_are_alike(twins, tmp_path):
    folders = [Path(shutil.copytree(twin, tmp_path / name)) for twin, name in zip(twins, ("lr=0.1", "lr_0.1"))]
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    written = sorted((tmp_path / "out/evaluation").rglob("sem_seg_results.json"))
    assert [path.parent.name for path in written] == ["lr_0.1", "lr_0.1-2"]
    for path, folder in zip(written, folders):
        assert json.loads(path.read_text()) == pytest.approx(results_of(folder), nan_ok=True)


def test_a_run_beside_itself_does_not_differ(twins, tmp_path):
    again = Path(shutil.copytree(twins[0], tmp_path / "again"))
    set_pictures(again, 1, 0)
    assert main([str(twins[0]), str(again)]) == 0
    data = json.loads((again / "comparison" / "comparison.json").read_text())
    assert all(value in (0, None) for value in data["differences"]["again"].values())
    assert set(data["settings"]) == {"VISUALIZE.NUM_IMAGES"}
    assert not (again / "comparison" / "anchors.png").exists()  # none were contrasted


def test_features_that_cannot_be_measured_end_it_before_the_evaluation(twins, capsys, caplog):
    path = twins[1] / "model_final.pth"  # of weights with which values overflow
    checkpoint = torch.load(path, weights_only=True)
    next(value for name, value in checkpoint["model"].items() if name.startswith("backbone.")).fill_(1e38)
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit, match="2"):
        main(list(map(str, twins)))
    assert "contrast: feature map p2 holds values that are not finite" in capsys.readouterr().err
    assert "reading features" in caplog.text and "Predicting" not in caplog.text


def test_what_cannot_be_compared_is_refused(twins, capsys):
    path = twins[1] / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["TEST"]["SLIDING_WINDOW"].update(ENABLED=True, SIZE=[64, 64], STRIDE=[64, 64])
    path.write_text(yaml.dump(config))
    with pytest.raises(SystemExit, match="2"):
        main(list(map(str, twins)))
    error = capsys.readouterr().err.strip()
    assert "baseline and contrast are evaluated in different ways" in error and len(error.splitlines()) == 1
    assert not (twins[1] / "comparison").exists()
    advice = error[error.index("--opts") :].split()
    assert main([*map(str, twins), *advice]) == 0
    data = json.loads((twins[1] / "comparison" / "comparison.json").read_text())
    for folder in twins:
        assert data["results"][folder.name] == pytest.approx(results_of(folder))
    assert "TEST.SLIDING_WINDOW.ENABLED" not in data["settings"]

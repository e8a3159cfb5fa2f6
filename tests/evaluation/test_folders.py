import json
from pathlib import Path

import pytest

from d2_contrast.config import load_config
from d2_contrast.evaluation import claim_evaluation_folder, evaluation_folder, find_evaluation_folder

WINDOWS = ["TEST.SLIDING_WINDOW.ENABLED", "True", "TEST.SLIDING_WINDOW.SIZE", "[64, 96]"]
WINDOWS += ["TEST.SLIDING_WINDOW.STRIDE", "[32, 48]"]
SCALES = ["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[0.5, 1.0]"]


@pytest.fixture
def make(tmp_path):
    return lambda *options: load_config("", ["OUTPUT_DIR", str(tmp_path), *options])


@pytest.mark.parametrize(
    ("options", "dataset", "name"),
    [
        ([], "shapes_val", "shapes_val"),
        (WINDOWS, "shapes_val", "shapes_val_window64x96_stride32x48"),
        (SCALES, "shapes_val", "shapes_val_scales0.5-1.0_flip"),
        ([*SCALES, "TEST.AUG.FLIP", "False", *WINDOWS], "a", "a_window64x96_stride32x48_scales0.5-1.0"),
        ([], "../../elsewhere/a b", "__.._elsewhere_a_b"),
    ],
)
def test_the_name_says_what_it_is(make, tmp_path, options, dataset, name):
    assert evaluation_folder(make(*options), dataset) == str(tmp_path / "inference" / name)


def test_evaluations_do_not_meet(make, tmp_path):
    def claim(*options, weights="", iteration=None):
        folder = Path(claim_evaluation_folder(make(*options), "val", weights=weights, iteration=iteration))
        (folder / "results").write_text("")
        return folder.name

    first, second = str(tmp_path / "model_0000009.pth"), str(tmp_path / "model_final.pth")
    other = str(tmp_path / "other/model_final.pth")
    assert claim(weights=other) == "val"  # before there is a run in this folder
    assert claim(iteration=9) == claim(iteration=19) == "val-2"  # training replaces its own
    assert claim(weights=second, iteration=19) == "val-2"  # the same weights with the same settings
    assert json.loads((tmp_path / "inference/val-2/evaluation.json").read_text())["by"] == "training"
    assert claim(weights=first, iteration=9) == claim(weights=first, iteration=9) == "val-3"
    assert claim("INPUT.MIN_SIZE_TEST", "64", weights=second, iteration=19) == "val-4"
    assert claim("SOLVER.EMA.ENABLED", "True", weights=second, iteration=19) == "val-5"
    assert claim("SOLVER.BASE_LR", "0.5", "MODEL.WEIGHTS", second, weights=second, iteration=19) == "val-2"
    assert claim(*SCALES, weights=second, iteration=19) == "val_scales0.5-1.0_flip"
    assert claim(iteration=29) == "val-2"
    assert claim(weights=second, iteration=19) == "val-6"  # training has gone on since
    assert claim(weights=other) == "val"


def test_results_are_those_of_the_record(make, tmp_path):
    """An evaluation that ends early leaves none of an earlier iteration."""
    folder = Path(claim_evaluation_folder(make(), "val", iteration=9))
    results = [folder / name for name in ("sem_seg_results.json", "confusion_matrix.npz")]
    for path in results:
        path.write_text("")
    claim_evaluation_folder(make(), "val", weights=str(tmp_path / "model_0000009.pth"), iteration=9)
    assert all(path.exists() for path in results)
    claim_evaluation_folder(make(), "val", iteration=19)
    assert not any(path.exists() for path in results)


def test_a_run_finds_its_own_evaluation(make, tmp_path):
    """Not that of other weights, nor one that it will do again; a free folder stays free."""
    assert find_evaluation_folder(make(), "val", 99) is None and not (tmp_path / "inference").exists()
    claim_evaluation_folder(make(), "val", weights=str(tmp_path / "other/model_final.pth"), iteration=9)
    assert find_evaluation_folder(make(), "val", 99) is None
    folder = claim_evaluation_folder(make(), "val", iteration=9)
    assert folder.endswith("val-2")
    assert find_evaluation_folder(make(), "val", 10) == folder and find_evaluation_folder(make(), "val", 9) is None


def test_datasets_whose_folders_have_one_name_do_not_meet(make, tmp_path):
    def claim(dataset, **origin):
        return Path(claim_evaluation_folder(make(), dataset, iteration=9, **origin)).name

    for origin in ({}, {"weights": str(tmp_path / "model.pth")}):
        for _ in range(2):
            assert claim("site A", **origin) == "site_A" and claim("site_A", **origin) == "site_A-2"
    record = tmp_path / "inference/site_A/evaluation.json"
    older = json.loads(record.read_text())
    assert older.pop("dataset") == "site A"
    record.write_text(json.dumps(older))
    assert claim("site_A") == "site_A"


def test_results_of_older_versions(make, tmp_path):
    """They have no record: training goes on in their folder, another evaluation does not."""
    (tmp_path / "inference/val").mkdir(parents=True)
    (tmp_path / "inference/val/sem_seg_results.json").write_text("{}")
    assert claim_evaluation_folder(make(), "val", weights="model.pth").endswith("val-2")
    assert claim_evaluation_folder(make(), "val", iteration=9).endswith("val")

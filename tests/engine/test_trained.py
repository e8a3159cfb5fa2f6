"""Weights that training leaves for predictions, and loading them."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
from detectron2.modeling import build_model
from tiny_models import small_config, small_model

from d2_contrast.config import parse_config
from d2_contrast.data import Classes
from d2_contrast.engine import evaluate
from d2_contrast.engine.stripped import BEST, BestWeights, read_header, save_stripped
from d2_contrast.engine.trained import find_weights, load_network, read_trained

NAME = "shapes/fpn_r18_contrast.yaml"


def tensors_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_stripped_weights_are_what_a_prediction_needs(tmp_path):
    options = dict(MODEL__AUX_HEAD__NAME="FCNHead", MODEL__AUX_HEAD__CONVS_DIM=8, MODEL__AUX_HEAD__IN_FEATURES=["p4"])
    cfg, model = small_config(NAME, **options), small_model(NAME, **options)
    classes = Classes.numbered(5)
    path = str(tmp_path / "a.safetensors")
    save_stripped(path, model, cfg, classes, iteration=41)
    state = model.state_dict()
    training_only = {name for name in state if name.split(".")[0] in ("aux_head", "contrast")}
    assert len({name.split(".")[0] for name in training_only}) == 2
    kept = tensors_of(path)
    assert set(kept) == set(state) - training_only
    for name, tensor in kept.items():
        assert torch.equal(tensor, state[name])
    header = read_header(path)
    assert Classes.from_json(header["classes"]) == classes
    assert parse_config(header["config"], path).MODEL.FPN.OUT_CHANNELS == 16

    loaded, iteration = load_network(cfg, path)
    assert iteration == 41 and not loaded.training
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded([{"image": image}])[0], model.eval()([{"image": image}])[0])
    with pytest.raises(
        ValueError, match=r"holds no weights for \d+ tensors .*aux_head.*expected a checkpoint of the who"
    ):
        load_network(cfg, path, whole=True)


def test_tensors_that_share_memory(tmp_path):
    cfg = small_config(NAME)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_stripped(str(tmp_path / "a.safetensors"), model, cfg, Classes.numbered(5))
    assert set(tensors_of(tmp_path / "a.safetensors")) == set(model.state_dict())


class TestBestWeights:
    def cfg(self, folder, **options):
        cfg = small_config(NAME, **{"OUTPUT_DIR": str(folder), "DATASETS__TEST": ("shapes_val",)} | options)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 12
        return cfg

    def update(self, best, value, results, iteration, is_last=False):
        best.update(torch.nn.utils.skip_init(torch.nn.Linear, 1, 1).requires_grad_(False).apply(
            lambda layer: (layer.weight.fill_(value), layer.bias.fill_(0))
        ), results, iteration, is_last)  # fmt: skip

    def held(self, folder):
        path = folder / BEST
        return tensors_of(path)["weight"].item() if path.exists() else None

    def test_the_best_evaluation_counts(self, tmp_path):
        best = BestWeights(self.cfg(tmp_path), goes_on=False)
        for value, score, expected in [(1, math.nan, None), (2, 10.0, 2), (3, 30.0, 3), (4, 30.0, 3), (5, math.nan, 3)]:
            self.update(best, value, {"sem_seg": {"mIoU": score}}, value, is_last=value == 5)
            assert self.held(tmp_path) == expected
        header = read_header(str(tmp_path / BEST))
        assert header["iteration"] == "3" and json.loads(header["scores"]) == {"mIoU": 30.0}

    def test_a_resumed_run_goes_on_comparing(self, tmp_path):
        self.update(BestWeights(self.cfg(tmp_path), goes_on=False), 1, {"sem_seg": {"mIoU": 50.0}}, 1)
        best = BestWeights(self.cfg(tmp_path), goes_on=True)
        self.update(best, 2, {"sem_seg": {"mIoU": 40.0}}, 2)
        assert self.held(tmp_path) == 1
        self.update(best, 3, {"sem_seg": {"mIoU": 60.0}}, 3)
        assert self.held(tmp_path) == 3
        self.update(BestWeights(self.cfg(tmp_path), goes_on=False), 4, {"sem_seg": {"mIoU": 1.0}}, 1)
        assert self.held(tmp_path) == 4  # a new run

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ({"TEST__EVAL_PERIOD": 7, "SOLVER__BASE_LR": 0.5}, 1),
            ({"DATASETS__TEST": ("shapes_train",)}, 2),
            ({"TEST__AUG__ENABLED": True}, 2),
        ],
    )
    def test_a_resumed_run_compares_scores_of_one_kind(self, tmp_path, options, kept):
        self.update(BestWeights(self.cfg(tmp_path), goes_on=False), 1, {"sem_seg": {"mIoU": 50.0}}, 1)
        self.update(BestWeights(self.cfg(tmp_path, **options), goes_on=True), 2, {"sem_seg": {"mIoU": 40.0}}, 2)
        assert self.held(tmp_path) == kept

    def test_a_file_that_does_not_tell_its_dataset_counts(self, tmp_path):
        cfg, scores = self.cfg(tmp_path), json.dumps({"mIoU": 50.0})
        save_stripped(str(tmp_path / BEST), torch.nn.Linear(1, 1), cfg, Classes.numbered(12), scores=scores)
        assert BestWeights(cfg, goes_on=True).score == 50.0

    def test_another_metric_and_the_first_of_several_datasets(self, tmp_path):
        cfg = self.cfg(tmp_path, TEST__BEST_METRIC="IoU-heart")
        cfg.DATASETS.TEST = ("shapes_val", "shapes_train")
        best = BestWeights(cfg, goes_on=False)
        for value, first, second, expected in [(1, 5.0, 90.0, 1), (2, 4.0, 99.0, 1), (3, 6.0, 0.0, 3)]:
            results = {"shapes_val": {"sem_seg": {"mIoU": -first, "IoU-heart": first}}}
            results["shapes_train"] = {"sem_seg": {"mIoU": 0.0, "IoU-heart": second}}
            self.update(best, value, results, value)
            assert self.held(tmp_path) == expected

    def test_without_evaluation_the_last_weights_are_kept(self, tmp_path, logged):
        cfg = self.cfg(tmp_path, TEST__BEST_METRIC="mIou")
        best = BestWeights(cfg, goes_on=False)
        self.update(best, 1, {"sem_seg": {"mIoU": 3.0}}, 1)
        assert self.held(tmp_path) is None
        assert "TEST.BEST_METRIC is 'mIou', but the evaluation gives mIoU" in logged()
        self.update(best, 2, {}, 2, is_last=True)
        assert self.held(tmp_path) == 2

    def test_a_damaged_file_is_written_anew(self, tmp_path, logged):
        (tmp_path / BEST).write_bytes(b"\x08" + bytes(7) + b"{broken}")
        best = BestWeights(self.cfg(tmp_path), goes_on=True)
        assert "cannot be read" in logged()
        self.update(best, 1, {"sem_seg": {"mIoU": 3.0}}, 1)
        assert self.held(tmp_path) == 1


def test_a_run_with_an_average(trained):
    """The average is what is evaluated, kept as the best weights, and loaded."""
    average = torch.load(trained / "model_final.pth", weights_only=True)["average"]
    cfg = read_trained(str(trained))
    assert cfg.MODEL.WEIGHTS == str(trained / "model_final.pth") and cfg.SOLVER.EMA.ENABLED
    loaded, iteration = load_network(cfg, cfg.MODEL.WEIGHTS, whole=True)
    assert iteration == 1
    best = tensors_of(trained / BEST)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, average[f"module.{name}"])
        assert name not in best or torch.equal(tensor, best[name])
    assert "sem_seg_head.predictor.weight" in best


def test_stripped_weights_are_evaluated_as_they_are(run_folder, make_cfg, tmp_path, logged):
    options = ["SOLVER.EMA.ENABLED", True, "OUTPUT_DIR", tmp_path / "evaluation"]
    whole = evaluate(make_cfg(*options, "MODEL.WEIGHTS", run_folder / "model_final.pth", eval_only=True))
    stripped = evaluate(make_cfg(*options, "MODEL.WEIGHTS", run_folder / BEST, eval_only=True))
    assert stripped["sem_seg"] == pytest.approx(whole["sem_seg"], nan_ok=True)
    assert "holds no average" not in logged()


def test_where_weights_are_looked_for(run_folder):
    assert find_weights(str(run_folder)) == str(run_folder / "model_final.pth")
    shutil.copy(run_folder / "model_final.pth", run_folder / "model_0000001.pth")
    (run_folder / "last_checkpoint").write_text("model_0000001.pth")
    assert find_weights(str(run_folder)) == str(run_folder / "model_0000001.pth")
    for path in run_folder.glob("*.pth"):
        os.remove(path)
    assert find_weights(str(run_folder)) == str(run_folder / BEST)
    (run_folder / BEST).unlink()
    (run_folder / "last_checkpoint").unlink()
    assert find_weights(str(run_folder)) == ""


def test_the_device_is_what_this_machine_has(run_folder, monkeypatch):
    """Not what the machine of the training had; a GPU is simulated, whose tensors nobody makes here."""
    device = lambda *args, **kwargs: read_trained(str(run_folder), *args, **kwargs).MODEL.DEVICE  # noqa: E731
    assert device() == device(overrides=["MODEL.DEVICE", "cuda"]) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == "cuda" and device(overrides=["MODEL.DEVICE", "cuda:1"]) == "cuda:1"
    assert device(overrides=["MODEL.DEVICE", "cpu"]) == device(str(run_folder / "config.yaml")) == "cpu"


def test_a_network_in_a_checkpoint_alone(run_folder, tmp_path):
    """The config is in the file, too."""
    alone = Path(os.rename(run_folder / "model_final.pth", tmp_path / "alone.pth") or tmp_path / "alone.pth")
    cfg = read_trained(str(alone), overrides=["TEST.AMP.ENABLED", "True"])
    assert cfg.MODEL.TIMM.NAME == "resnet10t" and cfg.TEST.AMP.ENABLED
    build_model(cfg)

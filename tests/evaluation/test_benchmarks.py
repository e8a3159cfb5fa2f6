"""From files in each benchmark's layout to its figures and submission files, through loader, views and evaluator."""

from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from sklearn import metrics
from torch import nn
from torch.nn import functional as F

from d2_contrast.config import default_config
from d2_contrast.data import build_test_loader
from d2_contrast.evaluation import build_evaluator, build_inference_model

GROUPS = {
    "cityscapes_19_val": {"human": ["person", "rider"]},
    "ade20k_150_val": {},
    "pascal_context_59_val": {},
    "cadis_task2_val": {
        "anatomies": ["Pupil", "Iris", "Skin", "Cornea"],
        "rare": ["Tissue Forceps", "Primary Knife", "Lens Injector", "Secondary Knife", "Cap. Forceps"],
    },
}


class Colors(nn.Module):
    """Scores that depend on a pixel's colour alone, so that the best class is known without the model."""

    def __init__(self, classes):
        super().__init__()
        self.levels = torch.linspace(0, 255, classes)

    def forward(self, batched_inputs):
        results = []
        for x in batched_inputs:
            scores = -(x["image"].float().mean(0) - self.levels[:, None, None]).abs()
            size = x.get("height", scores.shape[1]), x.get("width", scores.shape[2])
            results.append({"sem_seg": F.interpolate(scores[None], size, mode="bilinear")[0]})
        return results

    def best(self, image_file):
        gray = cv2.imread(str(image_file)).astype(np.float32).mean(2)
        return np.abs(gray[..., None] - self.levels.numpy()).argmin(2)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    truth = {}
    for write in (miniatures.cityscapes, miniatures.ade20k, miniatures.pascal_context, miniatures.cadis):
        truth.update(write(tmp_path))

    def run(name):
        cfg = default_config()
        cfg.DATASETS.TEST = (name,)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        # Windows of a network that looks at single pixels change nothing.
        cfg.TEST.SLIDING_WINDOW.ENABLED = True
        cfg.TEST.SLIDING_WINDOW.SIZE = [32, 40]
        cfg.TEST.SLIDING_WINDOW.STRIDE = [20, 40]
        model = Colors(len(MetadataCatalog.get(name).stuff_classes))
        evaluator = build_evaluator(cfg, name)
        results = inference_on_dataset(build_inference_model(cfg, model), build_test_loader(cfg, name), evaluator)
        return model, results, {Path(k): v for k, v in truth.items()}

    return run


@pytest.mark.parametrize("name", GROUPS)
def test_figures(name, evaluate):
    model, results, truth = evaluate(name)
    labels, guesses = [], []
    for d in DatasetCatalog.get(name):
        label = truth[Path(d["sem_seg_file_name"])]
        if name.startswith("cadis"):  # the miniature gives raw ids
            table = MetadataCatalog.get(name).label_encodings["raw ids"]
            label = np.vectorize(table.get)(label)
        labels.append(label.ravel())
        guesses.append(model.best(d["file_name"]).ravel())
    labels, guesses = np.concatenate(labels), np.concatenate(guesses)
    assert (labels == 255).any()
    labels, guesses = labels[labels != 255], guesses[labels != 255]
    names = MetadataCatalog.get(name).stuff_classes
    present = np.union1d(labels, guesses)
    iou = dict(
        zip([names[i] for i in present], 100 * metrics.jaccard_score(labels, guesses, average=None, zero_division=0))
    )
    result = results["sem_seg"]
    assert {n: result[f"IoU-{n}"] for n in iou} == pytest.approx(iou)
    assert result["mIoU"] == pytest.approx(np.mean(list(iou.values())))
    for group, members in GROUPS[name].items():
        expected = [iou[n] for n in members if n in iou]
        assert result[f"mIoU-{group}"] == pytest.approx(np.mean(expected) if expected else np.nan, nan_ok=True)
    assert ("iIoU" in result) == name.startswith("cityscapes")


def test_a_test_split_gives_submission_files(evaluate, tmp_path):
    name = "cityscapes_19_test"
    model, results, _ = evaluate(name)
    assert results == {}
    (record,) = DatasetCatalog.get(name)
    (folder,) = (tmp_path / "out" / "inference").iterdir()  # named after the dataset and the windows
    file = folder / "submission" / "berlin_000000_000019_leftImg8bit.png"
    raw_ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    np.testing.assert_array_equal(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), raw_ids[model.best(record["file_name"])])

"""Every example of docs/extending.md, as it stands there."""

import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from snippets import code_blocks
from tiny_models import make_batch

import d2_contrast.modeling
from d2_contrast.config import load_config
from d2_contrast.data import build_train_loader
from d2_contrast.evaluation import build_evaluator

EXAMPLES = code_blocks(Path(__file__).parents[2] / "docs" / "extending.md")
TINY = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet10t", "MODEL.UPER.OUT_CHANNELS", 8]


def start(section, folder):
    """Run the example of a section and read its config, if it has one."""
    (folder / "my_parts.py").write_text(EXAMPLES[section]["python"])
    names = runpy.run_path("my_parts.py")
    (folder / "my.yaml").write_text(EXAMPLES[section].get("yaml", ""))
    return names, load_config("my.yaml", TINY)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(DatasetCatalog)
    yield tmp_path
    sys.modules.pop("my_parts", None)
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def garden(folder):
    """Images and labels with the values 0, 10, 20 and 30 in quarters."""
    label = np.kron([[0, 10], [20, 30]], np.ones((32, 32))).astype(np.uint8)
    for split in ("train", "val"):
        (folder / "garden" / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.stack([label * 8] * 3, axis=-1)).save(folder / f"garden/{split}/{i}.jpg")
            Image.fromarray(label).save(folder / f"garden/{split}/{i}.png")


def test_the_page_has_these_examples():
    assert set(EXAMPLES) == {"Extending", "A dataset", "A backbone", "A head", "A pixel loss", "An evaluator"}


def test_dataset(folder, garden):
    _, cfg = start("A dataset", folder)
    cfg.merge_from_list(["INPUT.CROP.ENABLED", False, "INPUT.SCALE_RANGE", [1.0, 1.0], "DATALOADER.NUM_WORKERS", 0])
    batch = next(iter(build_train_loader(cfg)))
    for sample in batch:
        assert sorted(sample["sem_seg"].unique().tolist()) == [0, 1, 2, 255]
        lightest = sample["image"].float().mean(0)[sample["sem_seg"] == 2].mean()
        assert lightest == pytest.approx(240, abs=2)


def test_training_with_own_parts(folder, garden, monkeypatch):
    (folder / "my_parts.py").write_text(EXAMPLES["A dataset"]["python"])
    (folder / "my.yaml").write_text(EXAMPLES["A dataset"]["yaml"])
    (folder / "my_train.py").write_text(EXAMPLES["Extending"]["python"])
    options = [*TINY, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    options += ["INPUT.CROP.SIZE", "[64, 64]", "VISUALIZE.NUM_IMAGES", 0, "VISUALIZE.TSNE_POINTS", 0]
    monkeypatch.setattr(sys, "argv", ["my_train.py", "--config-file", "my.yaml", *map(str, options)])
    runpy.run_path("my_train.py", run_name="__main__")
    results = json.loads((folder / "output/garden/inference/garden_val/sem_seg_results.json").read_text())
    assert {"IoU-lawn", "IoU-path", "IoU-bed"} <= set(results)


@pytest.mark.parametrize(("section", "part"), [("A backbone", "backbone.bottom_up"), ("A head", "sem_seg_head")])
def test_parts_of_a_network_are_trained(folder, section, part):
    names, cfg = start(section, folder)
    torch.manual_seed(0)
    model = build_model(cfg)
    own = model.get_submodule(part)
    assert type(own).__name__ in names
    losses = model(make_batch((64, 96), (64, 64), num_classes=12))
    assert {"loss_sem_seg", "loss_contrast_p2", "loss_contrast_p2_p5"} <= set(losses)
    sum(losses.values()).backward()
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.eval()
    (output,) = model(make_batch((50, 70)))
    assert output["sem_seg"].shape == (12, 50, 70)


def test_pixel_loss(folder):
    _, cfg = start("A pixel loss", folder)
    loss = d2_contrast.modeling.build_pixel_loss(cfg)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)
    targets = torch.randint(0, 3, (2, 4, 5), generator=generator)
    targets[0, :2] = 255
    terms = []
    for n, i, j in (targets != 255).nonzero().tolist():
        p = logits[n, :, i, j].softmax(0)[targets[n, i, j]].item()
        terms.append(-((1 - p) ** 2) * math.log(p))
    value = loss(logits, targets)
    assert value.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    value.backward()
    ignored = loss(logits, torch.full_like(targets, 255))
    assert ignored.item() == 0


def test_evaluator(folder):
    start("An evaluator", folder)
    DatasetCatalog.register("plots_val", lambda: [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}])
    MetadataCatalog.get("plots_val").set(stuff_classes=["lawn", "path", "bed"], evaluator_type="KappaEvaluator")
    evaluator = build_evaluator(None, "plots_val", str(folder))
    evaluator.reset()
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (20, 30))
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 3, label.shape))
    Image.fromarray(label.astype(np.uint8)).save("a.png")
    evaluator.process([{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}], [{"sem_seg": torch.tensor(prediction)}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["kappa"] == pytest.approx(100 * cohen_kappa_score(label.ravel(), prediction.ravel()))
    assert "mIoU" in results

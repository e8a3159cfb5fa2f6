import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from d2_contrast.engine import Trainer, preflight, train
from d2_contrast.engine.preflight import check_run

BASE = "uper_r18.yaml"


@pytest.fixture
def own_data(tiny_root, tmp_path, make_cfg, monkeypatch):
    """The test dataset is a copy whose files can be damaged; gives its folder and the config."""
    folder = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    cfg = make_cfg(base=BASE)
    (name,) = cfg.DATASETS.TEST
    samples = DatasetCatalog.get(name)
    for sample in samples:
        for key in ("file_name", "sem_seg_file_name"):
            sample[key] = sample[key].replace(str(tiny_root), str(folder))
    original = DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda n: [dict(s) for s in samples] if n == name else original(n))
    return folder, cfg, samples


def narrow(path: Path) -> None:
    Image.fromarray(np.asarray(Image.open(path))[:, :-1]).save(path)


DAMAGE = {
    "missing": (lambda root, _: (root / "labels/val/1.png").unlink(), r"'tiny.*1 files are missing, .*val/1.png"),
    "size": (lambda root, _: narrow(root / "labels/val/2.png"), r"val/2.png: the label has 128 x 127 pixels"),
    "empty": (lambda root, _: (root / "images/val/0.png").write_bytes(b""), r"images/val/0.png: cannot read"),
    "class": (lambda root, _: Image.new("L", (128, 128), 77).save(root / "labels/val/0.png"), r"val/0.png: .*77"),
    "some unlabelled": (lambda _, s: s[1].pop("sem_seg_file_name"), r"1 of 3 images have no label, .*images/val/1.png"),
    "none": (lambda _, s: s.clear(), r"dataset 'tiny.*' has no images"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_problems_of_a_test_dataset_appear_before_training(own_data, case):
    folder, cfg, samples = own_data
    damage, message = DAMAGE[case]
    damage(folder, samples)
    with pytest.raises((OSError, ValueError), match=message):
        train(cfg)
    assert not Path(cfg.OUTPUT_DIR, "metrics.json").exists()


def test_training_needs_labels(make_cfg, monkeypatch):
    (name,) = make_cfg(base=BASE).DATASETS.TEST
    monkeypatch.setattr(DatasetCatalog, "get", lambda _: [{"file_name": "a.png"}])
    with pytest.raises(ValueError, match=f"dataset '{name}': 1 of 1 images have no label, the first is a.png"):
        preflight.check_dataset(name, is_train=True)


class Fails(torch.nn.Module):
    def forward(self, _):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")


def test_a_prediction_that_fails(make_cfg):
    cfg = make_cfg(base=BASE)
    with pytest.raises(RuntimeError, match="val/0.png of dataset 'tiny.* cannot be predicted.*size of tensor a"):
        check_run(cfg, Fails())


def test_it_leaves_no_trace(make_cfg):
    """In random numbers, weights and mode."""
    cfg = make_cfg("TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [1.0], base=BASE)
    network = Trainer.build_model(cfg).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.rand(), torch.rand(()).item()
    np.random.seed(1)
    torch.manual_seed(1)
    check_run(cfg, network)
    assert (np.random.rand(), torch.rand(()).item()) == expected
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert network.training


def test_a_long_prediction_is_not_tried(make_cfg, monkeypatch, logged):
    cfg = make_cfg(base=BASE)
    network, sizes = Trainer.build_model(cfg), []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0][0]["image"].shape[1:])))
    monkeypatch.setattr(preflight, "CHEAP", 0)
    monkeypatch.setattr(preflight, "TRIAL", 64)
    check_run(cfg, network)
    assert sizes == [(64, 64), (128, 128)] and "none is tried" not in logged()
    monkeypatch.setattr(preflight, "MAX_SECONDS", -math.inf)
    check_run(cfg, network)
    assert sizes == [(64, 64), (128, 128), (64, 64)] and "none is tried" in logged()


@pytest.mark.parametrize("windows", [True, False])
def test_a_network_that_takes_some_sizes_alone(make_cfg, monkeypatch, windows):
    """The trial is one of the windows; a trial of a size that the network refuses decides nothing."""
    options = ["TEST.SLIDING_WINDOW.SIZE", [96, 96], "TEST.SLIDING_WINDOW.STRIDE", [32, 32]]
    cfg = make_cfg("TEST.SLIDING_WINDOW.ENABLED", windows, *options, base=BASE)
    network, sizes = Trainer.build_model(cfg), []

    def look(_, inputs):
        sizes.append(tuple(inputs[0][0]["image"].shape[1:]))
        if sizes[-1] != ((96, 96) if windows else (128, 128)):
            raise ValueError("pool_kernel_size must be divisible by the shape of inputs")

    network.register_forward_pre_hook(look)
    monkeypatch.setattr(preflight, "CHEAP", 0)
    monkeypatch.setattr(preflight, "TRIAL", 64)
    check_run(cfg, network)
    assert sizes == ([(96, 96)] * 3 if windows else [(64, 64), (128, 128)])

"""Metrics in Weights & Biases, by a stand-in for its package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from d2_contrast.config import default_config
from d2_contrast.engine.wandb_writer import WandbWriter
from d2_contrast.extras import MissingExtraError


@pytest.fixture
def cfg(tmp_path):
    cfg = default_config()
    cfg.OUTPUT_DIR, cfg.WANDB.PROJECT = str(tmp_path), "segmentation"
    return cfg


def test_what_is_logged(cfg, monkeypatch):
    started, logged, finished = [], [], []
    run = SimpleNamespace(
        id="k3x", log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(True)
    )
    wandb = ModuleType("wandb")
    wandb.init = lambda **options: started.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    writer = WandbWriter(cfg)
    assert started[0]["project"] == "segmentation" and started[0]["dir"] == cfg.OUTPUT_DIR
    assert started[0]["id"] is None
    assert started[0]["config"]["MODEL.CONTRAST.TEMPERATURE"] == 0.1
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 2.0)
        storage.put_scalar("mIoU", float("nan"), smoothing_hint=False)
        writer.write()
        writer.write()  # nothing new
        storage.step()
        storage.put_scalar("loss", 1.0)
        writer.write()
    writer.close()
    assert logged == [(0, {"loss": 2.0}), (1, {"loss": 1.5})] and finished == [True]


def test_a_run_goes_on_in_its_record(cfg, monkeypatch):
    started = []
    wandb = ModuleType("wandb")
    wandb.init = lambda **options: started.append(options) or SimpleNamespace(id="k3x")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    WandbWriter(cfg)
    WandbWriter(cfg)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    WandbWriter(cfg)
    assert [(options["id"], options["resume"]) for options in started] == [
        (None, "allow"),
        ("k3x", "allow"),
        ("mine", "allow"),
    ]


def test_a_record_that_cannot_be_started(cfg, monkeypatch):
    def refuse(**_):
        raise RuntimeError("No API key\nconfigured.")

    wandb = ModuleType("wandb")
    wandb.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ValueError, match=r"WANDB.PROJECT is 'segmentation': .*\(No API key configured\.\)"):
        WandbWriter(cfg)


def test_without_the_package(cfg, monkeypatch):
    monkeypatch.setattr(
        "d2_contrast.extras.import_module", lambda name: exec("raise ModuleNotFoundError(name='wandb')")
    )
    with pytest.raises(MissingExtraError, match=r"wandb is not installed: run `pip install .d2_contrast\[wandb\]"):
        WandbWriter(cfg)

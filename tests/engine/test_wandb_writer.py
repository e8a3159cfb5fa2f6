"""Metrics in Weights & Biases, by a stand-in for its package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from d2_contrast.config import default_config
from d2_contrast.engine.metrics_writer import put_back, recent_values
from d2_contrast.engine.wandb_writer import WandbWriter, start_record
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

    writer = WandbWriter(start_record(cfg))
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
    start_record(cfg)
    start_record(cfg)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    start_record(cfg)
    assert [(options["id"], options["resume"]) for options in started] == [
        (None, "allow"),
        ("k3x", "allow"),
        ("mine", "allow"),
    ]


def test_a_resumed_run_logs_no_evaluation_a_second_time():
    """But the one after the last iteration, which the killed run may not have come to, at its own step."""

    def go_on(start: int, stop: int, storage: EventStorage) -> list[tuple[int, float]]:
        logged = []
        record = SimpleNamespace(log=lambda values, step: logged.append((step, values)))
        writer = WandbWriter(record, start_iter=start)
        with storage:
            for storage.iter in range(start, stop):
                storage.put_scalar("loss", 1.0)
                if storage.iter in (3, 8, 17):
                    storage.put_scalar("mIoU", float(storage.iter), smoothing_hint=False)
                if storage.iter % 5 == 4:
                    writer.write()
        return [(step, values["mIoU"]) for step, values in logged if "mIoU" in values]

    killed = EventStorage()
    assert go_on(0, 10, killed) == [(3, 3.0), (8, 8.0)]
    for start, expected in ((9, [(8, 8.0), (17, 17.0)]), (10, [(17, 17.0)])):
        resumed = EventStorage(start)
        put_back(resumed, recent_values(killed, start - 1))
        assert go_on(start, 20, resumed) == expected


def test_a_record_that_cannot_be_started(cfg, monkeypatch):
    def refuse(**_):
        raise RuntimeError("No API key\nconfigured.")

    wandb = ModuleType("wandb")
    wandb.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ValueError, match=r"WANDB.PROJECT is 'segmentation': .*\(No API key configured\.\)"):
        start_record(cfg)


def test_without_the_package(cfg, monkeypatch):
    monkeypatch.setattr(
        "d2_contrast.extras.import_module", lambda name: exec("raise ModuleNotFoundError(name='wandb')")
    )
    with pytest.raises(MissingExtraError, match=r"wandb is not installed: run `pip install .d2_contrast\[wandb\]"):
        start_record(cfg)

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS

from d2_contrast.data.skipped import SkippedSamples
from d2_contrast.engine import Trainer, evaluate, setup, train

SHAPES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("shapes/*.yaml") if not p.name.startswith("Base"))


def metrics_of(output_dir) -> list[dict]:
    return [json.loads(line) for line in (Path(output_dir) / "metrics.json").read_text().splitlines()]


def last_values(output_dir) -> dict:
    return {key: value for line in metrics_of(output_dir) for key, value in line.items()}


def test_evaluation_reproduces_training(make_cfg, tmp_path):
    cfg = make_cfg("VISUALIZE.NUM_IMAGES", 2, "VISUALIZE.TSNE_POINTS", 60)
    trained = train(cfg)
    assert math.isfinite(trained["sem_seg"]["mIoU"])
    output = Path(cfg.OUTPUT_DIR)
    for name in ("predictions.png", "tsne.png", "curves.png", "confusion.png", "config.yaml", "last_checkpoint"):
        assert (output / name).is_file(), name
    assert list(output.glob("events.out.tfevents.*"))
    line = last_values(output)
    for scale in ("p2", "p3", "p4", "p5", "p2_p5", "p2_p4"):
        assert math.isfinite(line[f"loss_contrast_{scale}"])
    assert line["contrast/p2/num_anchors"] > 0

    again = make_cfg("MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluation")
    evaluated = evaluate(again)
    assert evaluated["sem_seg"] == pytest.approx(trained["sem_seg"], nan_ok=True)


def test_seed_makes_runs_equal(make_cfg, tmp_path):
    runs = []
    for name in "ab":
        cfg = make_cfg("OUTPUT_DIR", tmp_path / name)
        train(cfg)
        lines = metrics_of(cfg.OUTPUT_DIR)
        runs.append([{k: v for k, v in line.items() if "loss" in k or "contrast" in k} for line in lines])
    assert runs[0] and runs[0] == runs[1]


@pytest.mark.parametrize(
    "options",
    [
        ["SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.OPTIMIZER", "AdamW", "SOLVER.CLIP_GRADIENTS.ENABLED", True],
        ["SOLVER.AMP.ENABLED", True],
        ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"],
    ],
    ids=["accumulation", "float16", "bfloat16"],
)
def test_resumed_training_equals_uninterrupted(make_cfg, tmp_path, monkeypatch, options):
    """The same batch throughout and no random sampling: what is left is what a checkpoint has to carry."""
    options = [*options, "SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5]
    base = "uper_r18.yaml"
    batch = next(iter(Trainer.build_train_loader(make_cfg(*options, base=base))))
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: [batch] * 8))

    whole = Trainer(make_cfg(*options, "OUTPUT_DIR", tmp_path / "whole", base=base))
    whole.train()

    cfg = make_cfg(*options, "OUTPUT_DIR", tmp_path / "parts", base=base)
    first = Trainer(cfg)
    first.max_iter = 2  # interrupted: the schedule is that of the whole run
    first.train()
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    second.train()

    torch.testing.assert_close(second.network.state_dict(), whole.network.state_dict())
    torch.testing.assert_close(second.average.state_dict(), whole.average.state_dict())
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    torch.testing.assert_close(second.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"])
    scales = [trainer._trainer.grad_scaler.state_dict() for trainer in (second, whole)]
    assert scales[0] == scales[1]
    assert second.last_results["sem_seg"] == pytest.approx(whole.last_results["sem_seg"], nan_ok=True)

    weights = tmp_path / "parts" / "model_final.pth"
    average = evaluate(make_cfg(*options, "MODEL.WEIGHTS", weights, base=base))
    assert average["sem_seg"] == pytest.approx(whole.last_results["sem_seg"], nan_ok=True)


def test_samples_that_an_earlier_run_has_skipped_do_not_count(make_cfg, logged):
    """They do in a run that goes on; with --resume, too, a run starts anew where there is no checkpoint."""
    options = ["SOLVER.MAX_ITER", 1, "VISUALIZE.NUM_IMAGES", 0, "VISUALIZE.TSNE_POINTS", 0]
    cfg = make_cfg(*options, base="uper_r18.yaml", resume=True)
    skipped = SkippedSamples(cfg.OUTPUT_DIR)
    skipped.add("a.png", ValueError("a.png is bad"))
    train(cfg, resume=True)
    assert skipped.describe() == "" and "were skipped" not in logged()
    skipped.add("b.png", ValueError("b.png is bad"))
    train(cfg, resume=True)
    assert "1 training samples could not be used and were skipped, 1 times:\n  b.png is bad" in logged()


def test_a_run_can_be_resumed_with_other_settings(make_cfg):
    base = "uper_r18.yaml"
    train(make_cfg("SOLVER.MAX_ITER", 2, base=base))
    options = ["SOLVER.MAX_ITER", 4, "SOLVER.AMP.ENABLED", True, "SOLVER.EMA.ENABLED", True]
    cfg = make_cfg(*options, base=base, resume=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    rates = [line["lr"] for line in metrics_of(cfg.OUTPUT_DIR) if "lr" in line]
    assert rates[-1] == pytest.approx(cfg.SOLVER.BASE_LR * 0.25**cfg.SOLVER.POLY_LR_POWER)  # at the last of 4
    assert trainer._trainer.grad_scaler.is_enabled() and trainer.average.n_averaged == 2


def test_every_evaluation_is_logged(make_cfg, monkeypatch):
    """Also where there are several within the 20 iterations between two lines of losses."""
    scores = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"sem_seg": {"mIoU": next(scores)}}))
    cfg = make_cfg("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 2, base="uper_r18.yaml")
    Trainer(cfg).train()
    lines = metrics_of(cfg.OUTPUT_DIR)
    logged = [(line["iteration"], line["sem_seg/mIoU"]) for line in lines if "sem_seg/mIoU" in line]
    assert logged == [(1, 10.0), (3, 30.0), (6, 20.0)]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [1, 3, 5]


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_are_logged_in_their_step(make_cfg, batches):
    """As the statistics of the anchors are, also those of the last step."""
    options = ["MODEL.CONTRAST.LOG_PERIOD", 2, "MODEL.CONTRAST.BALANCE.LOG_PERIOD", 2]
    cfg = make_cfg(*options, "SOLVER.MAX_ITER", 3, "SOLVER.ACCUMULATION_STEPS", batches, "DATASETS.TEST", ())
    trainer = Trainer(cfg)
    trainer.train()
    logged = {name: history.values() for name, history in trainer.storage.histories().items()}
    for name in ("gradient/ratio", "gradient/cosine", "contrast/p2/num_anchors"):
        assert sorted({iteration for _, iteration in logged[name]}) == [0, 2], name
    assert any("gradient/ratio" in line for line in metrics_of(cfg.OUTPUT_DIR) if line["iteration"] == 2)


def test_average_follows_the_weights(make_cfg):
    cfg = make_cfg("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.25, "SOLVER.MAX_ITER", 3, base="uper_r18.yaml")
    trainer = Trainer(cfg)
    weights = []
    trainer._hooks[0].after_step = _recording(trainer, weights, trainer._hooks[0].after_step)
    trainer.train()
    expected = weights[0]
    for value in weights[1:]:
        expected = 0.25 * expected + 0.75 * value
    torch.testing.assert_close(trainer.average.module.sem_seg_head.predictor.weight, expected)


def _recording(trainer, weights, after_step):
    def wrapped():
        weights.append(trainer.network.sem_seg_head.predictor.weight.detach().clone())
        after_step()

    return wrapped


def test_evaluation_compiles(make_cfg, trained, monkeypatch):
    compiled = []
    monkeypatch.setattr("d2_contrast.engine.run.compile_network", compiled.append)
    for compile in (True, False):
        evaluate(make_cfg("MODEL.COMPILE", compile, "MODEL.WEIGHTS", trained / "model_final.pth"))
    assert len(compiled) == 1


def test_evaluation_needs_weights(make_cfg):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        evaluate(make_cfg())


def test_evaluation_needs_a_whole_network(make_cfg, tmp_path):
    """What is for training alone may be missing; a head may not, nor have another number of classes."""
    model = Trainer.build_model(make_cfg())
    state = model.state_dict()
    path = tmp_path / "weights.pth"
    cfg = make_cfg("MODEL.WEIGHTS", path)

    torch.save({"model": {k: v for k, v in state.items() if not k.startswith(("contrast.", "aux_head."))}}, path)
    evaluate(cfg)
    torch.save({k: v for k, v in state.items() if k.startswith("backbone.bottom_up.")}, path)
    with pytest.raises(ValueError, match=r"weights\.pth holds no weights for .* of the whole network"):
        evaluate(cfg)
    torch.save({"model": {k: v[:5] if "predictor" in k else v for k, v in state.items()}}, path)
    with pytest.raises(ValueError, match=r"no weights for 2 tensors of this network \(sem_seg_head\.predictor"):
        evaluate(cfg)


def test_evaluation_verifies_expected_results(make_cfg, trained):
    options = ["MODEL.WEIGHTS", trained / "model_final.pth", "VISUALIZE.NUM_IMAGES", 0, "TEST.EXPECTED_RESULTS"]
    evaluate(make_cfg(*options, [["sem_seg", "mIoU", 50.0, 50.0]]))
    with pytest.raises(SystemExit):
        evaluate(make_cfg(*options, [["sem_seg", "mIoU", 200.0, 50.0]]))


@pytest.mark.parametrize("name", SHAPES)
def test_configs_of_the_embedded_dataset_run_as_shipped(tiny_datasets, tmp_path, name):
    """With fewer iterations and images, and nothing else changed: training, evaluations and pictures."""
    options = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, *tiny_datasets, "OUTPUT_DIR", tmp_path / "output"]
    cfg = setup(Namespace(config_file=str(CONFIGS / name), opts=[str(x) for x in options], eval_only=False))
    assert math.isfinite(train(cfg)["sem_seg"]["mIoU"])
    metrics = last_values(cfg.OUTPUT_DIR)
    assert math.isfinite(metrics["total_loss"])
    assert any(key.startswith("loss_contrast") for key in metrics) == ("contrast" in name)
    for picture in ("predictions.png", "tsne.png", "confusion.png", "curves.png"):
        assert Path(cfg.OUTPUT_DIR, picture).is_file(), picture


def test_detectron2s_own_segmentor(make_cfg):
    """Without auxiliary head and contrastive branch, of which it knows nothing."""
    options = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "VISUALIZE.NUM_IMAGES", 2, "VISUALIZE.TSNE_POINTS", 60]
    cfg = make_cfg(*options, "SOLVER.MAX_ITER", 2, base="uper_r18.yaml")
    trained = train(cfg)
    output = Path(cfg.OUTPUT_DIR)
    for name in ("predictions.png", "tsne.png", "confusion.png", "curves.png"):
        assert (output / name).is_file(), name
    weights = ["MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", output / "again"]
    evaluated = evaluate(make_cfg(*options, *weights, base="uper_r18.yaml"))
    assert evaluated["sem_seg"] == pytest.approx(trained["sem_seg"], nan_ok=True)


@pytest.mark.parametrize("launcher", ["spawn", "torchrun"])
def test_two_processes(write_config, tmp_path, pytestconfig, launcher):
    script = str(pytestconfig.rootpath / "train_net.py")
    start = {
        "spawn": [sys.executable, script, "--num-gpus", "2", "--dist-url", "auto"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script],
    }[launcher]
    options = ["OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4"]
    options += ["MODEL.CONTRAST.GATHER", "True"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*start, "--config-file", write_config(), *options], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Every image counts once, whichever process predicted it.
    results = json.loads(next((tmp_path / "output").glob("inference/*/sem_seg_results.json")).read_text())
    assert 0 <= results["mIoU"] <= 100
    assert "2 x cpu" in result.stdout
    assert math.isfinite(last_values(tmp_path / "output")["total_loss"])

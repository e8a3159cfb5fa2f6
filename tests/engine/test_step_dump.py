import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from d2_contrast import replay
from d2_contrast.engine import Trainer, step_dump
from d2_contrast.engine.checkpoint import NonFiniteError

OPTIONS = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.ACCUMULATION_STEPS", 2]


class Spoil(HookBase):
    """Make a weight infinite after an iteration."""

    def after_step(self):
        if self.trainer.iter == 2:
            with torch.no_grad():
                self.trainer.network.sem_seg_head.predictor.bias[3] = math.inf


def test_a_run_that_is_not_finite_can_be_looked_into(make_cfg, capsys, logged):
    trainer = Trainer(make_cfg(*OPTIONS))
    trainer.register_hooks([Spoil()])
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    folder = Path(trainer.cfg.OUTPUT_DIR)
    message, path = str(raised.value), folder / "non_finite_0000003_rank0.pth"
    assert message.startswith("Not finite in iteration 3: loss_sem_seg nan") and message.count(".png") == 4
    assert f"The last good checkpoint is {folder / 'model_0000001.pth'}" in message
    assert message.endswith(f"d2-contrast replay {path}")
    # What was trained since is not saved, since it is not finite, and resuming works.
    assert "Nothing is saved, since not all numbers are finite" in logged()
    again = Trainer(make_cfg(*OPTIONS, resume=True))
    again.resume_or_load(resume=True)
    assert again.start_iter == 2

    damaged, name = torch.load(path, weights_only=True), "sem_seg_head.predictor.bias"
    damaged["model"].pop(name)
    torch.save(damaged, folder / "damaged.pth")
    with pytest.raises(ValueError, match=f"damaged.pth does not hold the weights of its network: .*{name}"):
        step_dump.replay_step(str(folder / "damaged.pth"))

    capsys.readouterr()
    torch.manual_seed(1)
    replay.main([str(path)])
    told = capsys.readouterr().out.splitlines()[-5:]
    assert told[0].startswith("Iteration 3 with ") and told[0].count(".png") == 4
    # Anchors are drawn as they were: all terms are what they were.
    assert told[1].removeprefix("Then: ") == told[2].removeprefix("Now: ")
    assert told[3] == "The first module whose output is not finite: sem_seg_head.predictor"
    assert told[4].startswith("Gradients that are not finite: ")


def test_the_scale_of_the_loss_is_that_of_the_run(make_cfg, monkeypatch):
    """With the one that torch starts from, a layer whose gradient is never finite would pass as an overflow."""

    def spoil(build):
        def build_spoiled(cfg):
            model = build(cfg)
            model.sem_seg_head.predictor.weight.register_hook(lambda gradient: gradient * math.nan)
            return model

        return build_spoiled

    monkeypatch.setattr(Trainer, "build_model", staticmethod(spoil(Trainer.build_model)))
    monkeypatch.setattr(step_dump, "build_model", spoil(step_dump.build_model))
    trainer = Trainer(make_cfg("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"))
    trainer._trainer.grad_scaler._init_scale = 2.0
    with pytest.raises(NonFiniteError, match="^Not finite in iteration 1: gradient of ") as raised:
        trainer.train()
    told = step_dump.replay_step(str(raised.value).split()[-1])
    assert told[1].removeprefix("Then: ") == told[2].removeprefix("Now: ")
    assert told[3] == "Gradients that are not finite: 1, sem_seg_head.predictor.weight"


def test_what_is_no_step(tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "model.pth")
    torch.save({"config": "", "batches": [], "random_key": (0, 0)}, tmp_path / "part.pth")
    part = ("part.pth", "holds no training step")
    for name, message in (("model.pth", "holds no training step"), part, ("none.pth", "no such file")):
        with pytest.raises(SystemExit) as ended:
            replay.main([str(tmp_path / name)])
        assert ended.value.code == 2 and message in capsys.readouterr().err

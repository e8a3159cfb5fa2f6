"""Going on with a run under a config that differs from its own."""

import json
import logging
import math

import pytest
import timm
import torch
import yaml

from d2_contrast.config import load_config
from d2_contrast.engine import Trainer, evaluate, train
from d2_contrast.engine.resume import config_changes, describe_changes, keep_origin

EMA = ["SOLVER.EMA.ENABLED", True]


def momenta(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state
    return {name: state[p]["exp_avg"] for name, p in trainer._trainer.named_parameters() if p in state}


def is_fresh(optimizer: torch.optim.Optimizer) -> bool:
    """Whether nothing was loaded or stepped: SGD begins with momenta of 0."""
    return not any(value.any() for state in optimizer.state.values() for value in state.values())


CHANGED = {
    "channels": (
        ["MODEL.UPER.OUT_CHANNELS", 16],
        r"backbone\.\S+ of the network has the shape \(8, .* there, \(16, .* here \(and \d+ more tensors differ\) "
        r"\(MODEL.UPER.OUT_CHANNELS 8 there, 16 here\)",
    ),
    "fewer parts": (["MODEL.CONTRAST.ENABLED", False], r"projectors\.\S+ of the network there is missing here"),
    "more parts": (["MODEL.AUX_HEAD.NAME", "FCNHead"], r"aux_head\.\S+ of the network here is missing there"),
    "optimizer": (["SOLVER.OPTIMIZER", "SGD"], "SOLVER.OPTIMIZER is AdamW there, SGD here"),
}


def test_what_does_not_fit_is_refused_before_anything_is_loaded(make_cfg, run_folder):
    for options, message in CHANGED.values():
        trainer = Trainer(make_cfg(*EMA, *options, resume=True))
        before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        with pytest.raises(ValueError, match=message) as raised:
            trainer.resume_or_load(resume=True)
        path = run_folder / "model_final.pth"
        assert str(raised.value).startswith(f"{path} cannot be resumed with this config: ")
        assert f"MODEL.WEIGHTS {path} and another OUTPUT_DIR" in str(raised.value)
        assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
        assert is_fresh(trainer.optimizer) and not trainer.average.n_averaged and trainer.start_iter == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["average"].pop("module.sem_seg_head.predictor.bias"), "the moving average here is missing there"),
        (lambda c: c["trainer"]["_trainer"]["parameters"][0].reverse(), "exp_avg of .* has the shape .* in the opt"),
        (lambda c: c["trainer"]["_trainer"]["parameters"][0].pop(), "of the optimizer here is missing there"),
        (lambda c: c.pop("trainer"), "it holds weights alone, no optimizer or iteration"),
    ],
    ids=["average", "order", "names", "weights"],
)  # fmt: skip
def test_all_parts_are_compared(make_cfg, run_folder, damage, message):
    path = run_folder / "model_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    damage(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=message):
        Trainer(make_cfg(*EMA, resume=True)).resume_or_load(resume=True)


def test_fine_tuning_takes_what_fits(make_cfg, run_folder, tmp_path):
    """MODEL.WEIGHTS is another way: the same file, another network and optimizer."""
    options = ["MODEL.CONTRAST.ENABLED", False, "SOLVER.OPTIMIZER", "SGD", "OUTPUT_DIR", tmp_path / "tuned"]
    trainer = Trainer(make_cfg(*options, "MODEL.WEIGHTS", run_folder / "model_final.pth"))
    trainer.resume_or_load(resume=False)
    expected = torch.load(run_folder / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, expected[name]) for name, value in trainer.network.state_dict().items())
    assert trainer.start_iter == 0 and is_fresh(trainer.optimizer)


def test_settings_of_now_count_and_the_saved_config_says_so(make_cfg, run_folder, logged):
    rates = ["SOLVER.BASE_LR", 0.5, "SOLVER.HEAD_LR_FACTOR", 10.0, "SOLVER.WEIGHT_DECAY_NORM", 0.125]
    origin = ["MODEL.WEIGHTS", "elsewhere.pth"]
    cfg = make_cfg(*EMA, *rates, *origin, "SOLVER.MAX_ITER", 8, resume=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.save_config()

    # By hand: after two of eight iterations, warmed up, at another rate for all but the backbone.
    rate = 0.5 * (1 - 2 / 8) ** cfg.SOLVER.POLY_LR_POWER
    names = {p: name for name, p in trainer._trainer.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for name in (names[p] for p in group["params"]):
            assert group["lr"] == pytest.approx(rate * (1 if name.startswith("backbone.") else 10)), name
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.125, cfg.SOLVER.WEIGHT_DECAY}
    # Parameters are in other groups now; what belongs to them has gone with them.
    state = torch.load(run_folder / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    order = [name for group in state["parameters"] for name in group]
    expected = {order[i]: s["exp_avg"] for i, s in state["optimizer"]["state"].items()}
    assert order != [name for group in trainer._trainer.parameter_names() for name in group]
    torch.testing.assert_close(momenta(trainer), expected, rtol=0, atol=0)

    text = (run_folder / "config.yaml").read_text()
    saved = yaml.safe_load(text)
    assert saved["SOLVER"]["BASE_LR"] == 0.5 and saved["MODEL"]["WEIGHTS"] == ""
    for said in (logged(), text):
        assert "SOLVER.BASE_LR: 0.002 before, 0.5 now: honoured from iteration 2 on" in said
        assert "SOLVER.MAX_ITER: 2 before, 8 now: honoured" in said
        assert "MODEL.WEIGHTS:  before, elsewhere.pth now: kept as before" in said
        assert "TEMPERATURE: 0.1 before" not in said

    # The next checkpoint holds them: resumed once more, nothing differs, and the comments stay.
    trainer.max_iter = 3
    trainer.train()
    logging.getLogger("d2_contrast").info("-- second --")
    again = Trainer(make_cfg(*EMA, *rates, "SOLVER.MAX_ITER", 8, resume=True))
    again.resume_or_load(resume=True)
    again.save_config()
    assert "before" not in logged().partition("-- second --")[2]
    assert (run_folder / "config.yaml").read_text() == text


def test_checkpoints_without_config_and_names(make_cfg, run_folder, logged):
    """As older versions wrote them: config.yaml and the order of the parameters stand in."""
    path = run_folder / "model_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["config"], checkpoint["trainer"]["_trainer"]["parameters"]
    torch.save(checkpoint, path)
    trainer = Trainer(make_cfg(*EMA, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.5, resume=True))
    trainer.resume_or_load(resume=True)
    assert "SOLVER.BASE_LR: 0.002 before, 0.5 now" in logged()
    assert len(momenta(trainer)) == len(checkpoint["trainer"]["_trainer"]["optimizer"]["state"])
    for options in (["SOLVER.HEAD_LR_FACTOR", 10.0], ["SOLVER.OPTIMIZER", "SGD"]):
        with pytest.raises(ValueError, match=r"groups of \[\d+, .* there, \[.*\] here|is AdamW there, SGD here"):
            Trainer(make_cfg(*EMA, *options, resume=True)).resume_or_load(resume=True)


# What is done to the iteration and the optimizer of a checkpoint, and what is said about it.
LAYOUTS = [
    (lambda state, first: state.update(iteration=-1), "its iteration is -1"),
    (lambda state, first: state.update(iteration=True), "its iteration is True"),
    (lambda state, first: state.update(_trainer=[]), "it holds weights alone"),
    (lambda state, first: first.update(exp_avg="x"), "exp_avg of .* in the optimizer there is 'x'"),
    (lambda state, first: first.pop("step"), "step of .* in the optimizer there is None"),
    (lambda state, first: first.update(exp_avg=first["exp_avg"].int()), "exp_avg of .* is tensor"),
    (lambda state, first: first.update(exp_avg=first["exp_avg"] + math.inf), "1 of its tensors are not finite"),
    (lambda state, first: state["_trainer"]["optimizer"]["state"].update({10**6: first}), "keeps something of"),
    (lambda state, first: state["_trainer"]["optimizer"].update(state=[1]), "is not laid out as a checkpoint"),
    (lambda state, first: state["data"].pop("batch"), "is not laid out as a checkpoint .*KeyError: 'batch'"),
    (lambda state, first: state["data"].update(position=-1), "position of its place in the data is -1"),
    (lambda state, first: state["data"].update(seed="x"), "seed of its place in the data is 'x'"),
    (lambda state, first: state["_trainer"].update(skipped=[1]), r"its skipped steps are \[1\]: expected two"),
    (lambda state, first: state.update(recent={"loss": {}}), "is not laid out as a checkpoint"),
    (lambda state, first: state.update(recent={"loss": {"values": [(1, "x")]}}), "its recent values of loss are"),
    (lambda state, first: state.update(hooks=3), "its parts are not laid out as"),
]


def test_a_checkpoint_that_is_laid_out_otherwise(make_cfg, run_folder):
    path = run_folder / "model_final.pth"
    intact = path.read_bytes()
    trainer = Trainer(make_cfg(*EMA, "SOLVER.MAX_ITER", 4, resume=True))
    for change, message in LAYOUTS:
        path.write_bytes(intact)
        checkpoint = torch.load(path, weights_only=True)
        state = checkpoint["trainer"]
        change(state, state["_trainer"]["optimizer"]["state"][0])
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match=f"{path}.*{message}") as raised:
            trainer.resume_or_load(resume=True)
        assert "\n" not in str(raised.value), str(raised.value)
    path.write_bytes(intact)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2


def test_nothing_left_to_train(make_cfg, run_folder, logged):
    trainer = Trainer(make_cfg(*EMA, "SOLVER.MAX_ITER", 1, resume=True))
    trainer.resume_or_load(resume=True)
    assert "Nothing is left to train: SOLVER.MAX_ITER is 1" in logged()
    trainer._recent["time"] = {"values": [(0.5, 1)], "smoothed": True}  # which two iterations have not
    trainer.train()
    assert trainer.last_results["sem_seg"]["mIoU"] >= 0
    # The results are of the two iterations that are trained.
    lines = [json.loads(line) for line in (run_folder / "metrics.json").read_text().splitlines()]
    assert {line["iteration"] for line in lines if "sem_seg/mIoU" in line} == {2}
    assert all(line.get("eta_seconds", 0) >= 0 for line in lines)
    (record,) = run_folder.glob("inference/*/evaluation.json")
    assert json.loads(record.read_text())["iteration"] == 1


def test_changes_of_a_config():
    cfg = load_config("", ["SOLVER.BASE_LR", "0.1", "DATASETS.TRAIN", "('a',)"])
    before = yaml.safe_load(cfg.dump())
    before["SOLVER"]["BASE_LR"] = 0.01
    before["SOLVER"]["GONE"] = 1
    before["MODEL"]["WEIGHTS"] = "first.pth"
    del before["SEED"]
    changes = config_changes(yaml.safe_dump(before), cfg)
    assert changes == {
        "MODEL.WEIGHTS": ("first.pth", ""),
        "SEED": ("(no such key)", -1),
        "SOLVER.BASE_LR": (0.01, 0.1),
        "SOLVER.GONE": (1, "(no such key)"),
    }
    kept = keep_origin(cfg, changes)
    assert kept.MODEL.WEIGHTS == "first.pth" and kept.SOLVER.BASE_LR == 0.1 and cfg.MODEL.WEIGHTS == ""
    assert len(describe_changes(changes, 5)) == 4
    assert config_changes(cfg.dump(), cfg) == config_changes("", cfg) == config_changes("a: [", cfg) == {}


def test_no_weights_are_downloaded_to_go_on(make_cfg, run_folder, monkeypatch):
    """A node without network can resume and evaluate."""
    monkeypatch.setattr("timm.create_model", _without_network(timm.create_model))
    pretrained = [*EMA, "MODEL.BACKBONE.PRETRAINED", True, "SOLVER.MAX_ITER", 3]
    cfg = make_cfg(*pretrained, resume=True)
    train(cfg, resume=True)
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["MODEL"]["BACKBONE"]["PRETRAINED"] is False
    assert evaluate(make_cfg(*pretrained, eval_only=True), resume=True)
    with pytest.raises(RuntimeError, match="cannot be downloaded"):
        train(make_cfg(*pretrained, "OUTPUT_DIR", run_folder / "new"))


def _without_network(create_model):
    def create(*args, pretrained=False, **kwargs):
        if pretrained:
            raise ConnectionError("no network")
        return create_model(*args, pretrained=pretrained, **kwargs)

    return create


def test_memories_go_on(make_cfg, tmp_path):
    """They are in the checkpoint, must fit it, and are not needed to evaluate."""
    memory = ["MODEL.CONTRAST.MEMORY.METHOD", "pixels+regions", "MODEL.CONTRAST.MEMORY.REGIONS", 9]
    train(make_cfg(*memory, "SOLVER.MAX_ITER", 2))
    saved = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    trainer = Trainer(make_cfg(*memory, resume=True))
    trainer.resume_or_load(resume=True)
    rings = {name: buffer for name, buffer in trainer.network.named_buffers() if ".rings." in name}
    assert len(rings) == 4 * 2 * 2  # scales, kinds, vectors and their number
    assert all(torch.equal(buffer, saved[name]) for name, buffer in rings.items())
    assert all(buffer.sum() > 0 for name, buffer in rings.items() if name.endswith("stored"))
    other = [*memory[:-1], 5]
    with pytest.raises(ValueError, match="rings.regions.vectors of the network has the shape .*REGIONS 9 there"):
        Trainer(make_cfg(*other, resume=True)).resume_or_load(resume=True)
    weights = ["MODEL.WEIGHTS", tmp_path / "output/model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated"]
    assert "sem_seg" in evaluate(make_cfg(*weights, eval_only=True))

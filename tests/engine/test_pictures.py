"""Pictures in training."""

from argparse import Namespace

import numpy as np
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2_contrast.engine import Trainer, setup, train


def run(folder, output, *options):
    """Train the network of a finished run again, in another folder."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["MODEL"]["WEIGHTS"] = ""
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.dump(config))
    options = [*options, "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
    train(setup(Namespace(config_file=str(path), opts=options, eval_only=False)))
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def test_every_vis_period(trained_twins, tmp_path):
    options = ["VISUALIZE.NUM_IMAGES", "2", "VISUALIZE.TSNE_POINTS", "40", "SEED", "3"]
    expected = run(trained_twins[1], tmp_path / "without", *options)
    found = run(trained_twins[1], tmp_path / "with", *options, "VIS_PERIOD", "2")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    folders = sorted((tmp_path / "with" / "pictures").iterdir())
    assert [folder.name for folder in folders] == ["0000002", "0000004"]
    for folder in folders:
        assert {file.name for file in folder.iterdir()} == {"predictions.png", "tsne.png", "confusion.png"}

    events = EventAccumulator(str(tmp_path / "with"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"pictures/predictions", "pictures/tsne", "pictures/confusion"}
    shown = events.Images("pictures/predictions")
    assert len(shown) == 2
    with Image.open(folders[-1] / "predictions.png") as image:
        assert (shown[-1].width, shown[-1].height) == image.size
        assert np.asarray(image.convert("L")).std() > 5


def test_a_resumed_run_draws_the_confusion_that_it_had(make_cfg, run_folder):
    """That of its last evaluation, before the next one."""
    options = ["SOLVER.EMA.ENABLED", True, "SOLVER.MAX_ITER", 3, "VIS_PERIOD", 3]
    trainer = Trainer(make_cfg(*options, resume=True))
    assert trainer.evaluation_folders == {}
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert [path.name for path in (run_folder / "pictures" / "0000003").iterdir()] == ["confusion.png"]

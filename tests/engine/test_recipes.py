"""Training and evaluation on each benchmark, from its config, with sizes and iterations overridden alone."""

import math
from argparse import Namespace

import miniatures
import pytest

from d2_contrast.engine import evaluate, setup, train

SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.PRETRAINED", "False",  # needs a network
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "2",
    "SOLVER.CHECKPOINT_PERIOD", "2",
    "TEST.EVAL_PERIOD", "0",
    "VISUALIZE.NUM_IMAGES", "0",
    "VISUALIZE.TSNE_POINTS", "0",
]  # fmt: skip

RECIPES = [
    ("cityscapes/hrnet_w48_contrast_bs8_40k.yaml", miniatures.cityscapes, "iIoU"),
    ("ade20k/uper_swin_t_contrast_bs16_160k.yaml", miniatures.ade20k, "mIoU"),
    ("pascal_context/hrnet_w48_contrast_bs16_62k.yaml", miniatures.pascal_context, "mIoU"),
    ("cadis/ocrnet_r50_task2_contrast_bs8_50e.yaml", miniatures.cadis, "mIoU-rare"),
]


@pytest.mark.parametrize(("config", "write", "metric"), RECIPES, ids=[r[0].split("/")[0] for r in RECIPES])
def test_train_and_evaluate(config, write, metric, tmp_path, monkeypatch, pytestconfig):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write(tmp_path)
    path = str(pytestconfig.rootpath / "configs" / config)
    size = ["INPUT.CROP.SIZE", "[64, 64]", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path / "output")]
    trained = train(setup(Namespace(config_file=path, opts=[*SMALL, *size], eval_only=False)))
    assert math.isfinite(trained["sem_seg"]["mIoU"])
    assert any(metric in result for result in trained.values()), trained.keys()

    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "evaluation")]
    evaluated = evaluate(setup(Namespace(config_file=path, opts=[*SMALL, *size, *weights], eval_only=True)))
    for name, result in trained.items():
        assert evaluated[name] == pytest.approx(result, nan_ok=True)

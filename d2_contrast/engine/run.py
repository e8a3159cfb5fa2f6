"""A whole run: training or evaluation, then its pictures and a summary."""

import logging
import os

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..evaluation import CONFUSION_FILE
from ..modeling.meta_arch import TRAINING_ONLY
from ..visualize import write_report
from .averaging import averaged_weights, build_average
from .checkpoint import build_checkpointer
from .trainer import Trainer

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, resume: bool = False) -> dict:
    """Train and evaluate.

    Args:
        cfg: a config of :func:`setup`.
        resume: go on from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        The results of the final evaluation, on the main process; {} elsewhere.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.save_config()
    trainer.train()
    with averaged_weights(trainer.network, trainer.average):
        return _finish(trainer.cfg, trainer.network, trainer.last_results)


def evaluate(cfg: CfgNode, resume: bool = False) -> dict:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint in OUTPUT_DIR; returns results as ``train``.

    With SOLVER.EMA.ENABLED the moving average that the checkpoint holds is evaluated, as in training.

    Raises:
        ValueError: there are no weights to evaluate, or they are not those of a whole network.
    """
    model = Trainer.build_model(cfg)
    average = build_average(cfg, model)
    checkpointer = build_checkpointer(cfg, model, average)
    path = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError(
            "--eval-only needs weights: name a checkpoint by MODEL.WEIGHTS, or give --resume for the last one in "
            f"OUTPUT_DIR ({cfg.OUTPUT_DIR})"
        )
    checkpointer.load(path)
    if missing := [name for name in checkpointer.missing if not name.startswith(TRAINING_ONLY)]:
        raise ValueError(
            f"{path} holds no weights for {len(missing)} tensors of this network ({missing[0]}, ...), which would be "
            "evaluated with random ones: --eval-only needs a checkpoint of the whole network"
        )
    if average is not None and not average.n_averaged:
        logger.warning("SOLVER.EMA.ENABLED is set but %s holds no average: evaluating its weights themselves", path)
    with averaged_weights(model, average):
        return _finish(cfg, model, Trainer.test(cfg, model))


def _finish(cfg: CfgNode, model: nn.Module, results: dict) -> dict:
    """Draw the pictures and say, last, what came out and which files to open."""
    if not comm.is_main_process():
        return {}
    confusion = None
    if cfg.DATASETS.TEST:
        path = os.path.join(cfg.OUTPUT_DIR, "inference", cfg.DATASETS.TEST[0], CONFUSION_FILE)
        if os.path.isfile(path):
            with np.load(path) as saved:
                confusion = saved["confusion"]
    pictures = write_report(cfg, model, confusion)
    by_dataset = results if len(cfg.DATASETS.TEST) > 1 else dict.fromkeys(cfg.DATASETS.TEST, results)
    for name, result in by_dataset.items():
        means = {k: v for k, v in result.get("sem_seg", {}).items() if k.startswith("mIoU")}
        if means:
            logger.info("%s: %s", name, ", ".join(f"{k} {v:.2f} %" for k, v in means.items()))
    files = [*pictures, os.path.join(cfg.OUTPUT_DIR, "metrics.json")]
    logger.info("To look at:\n%s", "\n".join(f"  {path}" for path in files if os.path.isfile(path)))
    return results

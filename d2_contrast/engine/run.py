"""A whole run: training or evaluation, then its pictures and a summary."""

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn

from ..data.skipped import SkippedSamples
from ..evaluation import CONFUSION_FILE, RESULTS_FILE, results_table
from ..extras import MissingExtraError
from ..modeling.compilation import compile_network
from ..output import to_look_at
from .averaging import averaged_weights
from .checkpoint import own_checkpoints
from .parallel import on_main_process
from .preflight import check_run
from .run_folder import METRICS, RunLock, check_free
from .trained import find_weights, load_network
from .trainer import Trainer, claim_folders, describe_means, results_by_dataset, save_config

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, resume: bool = False) -> dict:
    """Train and evaluate.

    Args:
        cfg: a config of :func:`setup`.
        resume: go on from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        The results of the final evaluation, on the main process; {} elsewhere.

    Raises:
        FolderInUseError: a run is going on in OUTPUT_DIR, or has been there and is not resumed.
        OSError, ValueError, RuntimeError: before training starts, something is wrong with the config or a dataset.
    """
    with ExitStack() as stack:
        on_main_process(lambda: stack.enter_context(RunLock(cfg.OUTPUT_DIR)) and None)
        on_main_process(partial(check_free, cfg.OUTPUT_DIR, resume=resume))
        trainer = Trainer(cfg, download=not (resume and own_checkpoints(cfg.OUTPUT_DIR)))
        trainer.resume_or_load(resume=resume)
        trainer.save_config()
        skipped_samples = SkippedSamples(cfg.OUTPUT_DIR)
        if not trainer.start_iter:
            on_main_process(skipped_samples.clear)
        if trainer.start_iter < trainer.max_iter:
            logger.info("%s. All is logged to %s", trainer.describe(), os.path.join(cfg.OUTPUT_DIR, "log.txt"))
            on_main_process(check_run, trainer.cfg, trainer.network)
        trainer.train()
        if skipped := skipped_samples.describe():
            logger.warning("%s", skipped)
        with averaged_weights(trainer.network, trainer.average):
            return _finish(
                trainer.cfg, trainer.network, trainer.last_results, trainer.evaluation_folders, cfg.OUTPUT_DIR
            )


def evaluate(cfg: CfgNode, resume: bool = False) -> dict:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint in OUTPUT_DIR; returns results as ``train``.

    With SOLVER.EMA.ENABLED the moving average that the checkpoint holds is evaluated, as in training.

    Raises:
        SystemExit: the results differ from TEST.EXPECTED_RESULTS.
        ValueError: there are no weights to evaluate, or they are not those of a whole network.
    """
    path = (resume and find_weights(cfg.OUTPUT_DIR)) or cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError(
            "--eval-only needs weights: name a checkpoint by MODEL.WEIGHTS, or give --resume for the last one in "
            f"OUTPUT_DIR ({cfg.OUTPUT_DIR})"
        )
    model, iteration = load_network(cfg, path)
    if cfg.MODEL.COMPILE:
        compile_network(model)
    folders = claim_folders(cfg, weights=path, iteration=iteration)
    evaluators = [Trainer.build_evaluator(cfg, name, folder) for name, folder in folders.items()]
    results = Trainer.test(cfg, model, evaluators)
    for folder in folders.values():
        save_config(cfg, folder)
    # Beside the results, since those of training are in OUTPUT_DIR.
    results = _finish(cfg, model, results, folders, next(iter(folders.values()), cfg.OUTPUT_DIR))
    if cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
        verify_results(cfg, results)
    return results


def _finish(cfg: CfgNode, model: nn.Module, results: dict, folders: Mapping[str, str], picture_folder: str) -> dict:
    """Draw the pictures and say, last, what came out and which files to open."""
    if not comm.is_main_process():
        return {}
    confusion = None
    for name, result in results_by_dataset(cfg, results).items():
        path = os.path.join(folders[name], CONFUSION_FILE)
        if os.path.isfile(path):
            with np.load(path) as saved:
                matrix, class_names = saved["confusion"], saved["class_names"].tolist()
            confusion = matrix if name == cfg.DATASETS.TEST[0] else confusion
            logger.info("\n%s:\n\n%s\n", name, results_table(result["sem_seg"], class_names, matrix))
        elif means := describe_means(result):
            logger.info("%s: %s", name, means)
    try:
        from ..visualize import write_report

        files = write_report(cfg, model, confusion, picture_folder)
    except MissingExtraError as error:
        logger.warning("No pictures are drawn: %s", error)
        files = []
    files += [os.path.join(folder, RESULTS_FILE) for folder in folders.values()]
    files.append(os.path.join(picture_folder, METRICS))
    if written := [path for path in files if os.path.isfile(path)]:  # none after a prediction for submission
        logger.info(to_look_at(written))
    return results

"""A look at the data of a run before it starts: what would otherwise end it at its first evaluation, hours later."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..data import SemSegMapper, load_dicts
from ..data.checks import check_sample
from ..errors import explain
from ..evaluation import build_evaluator, build_inference_model
from ..random_numbers import same_random_numbers

SAMPLES = 8  # of each dataset, at most, that are read
SECONDS = 20.0  # for looking whether the files of a dataset are there, in case its disk is slow
MAX_SECONDS = 60.0  # that a prediction may take
CHEAP = 1 << 21  # pixels over all views that are predicted without a trial
TRIAL = 256  # side of the trial's image in pixels, without windows

logger = logging.getLogger(__name__)


def check_run(cfg: CfgNode, network: nn.Module) -> None:
    """Look at every dataset of a run, and predict an image of each test dataset. To be called in one process.

    Random numbers are as before afterwards.

    Raises:
        OSError, ValueError: something is wrong with a dataset; the message names it and the file.
        RuntimeError: a prediction fails.
    """
    start = time.monotonic()
    with same_random_numbers():
        for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
            is_train = name in cfg.DATASETS.TRAIN
            check_dataset(name, is_train, skip=is_train and cfg.DATALOADER.ON_ERROR == "skip")
        for name in cfg.DATASETS.TEST:
            check_prediction(cfg, network, name)
    logger.debug("Looked at the datasets and a prediction in %.0f s", time.monotonic() - start)


def check_dataset(name: str, is_train: bool, skip: bool = False) -> None:
    """Check that the files of a dataset are there, that labels are where they are needed, and read a few samples.

    With ``skip`` files may be missing or damaged, as long as some samples that were read are whole.
    """
    samples = load_dicts(name)
    unlabelled = [sample["file_name"] for sample in samples if sample.get("sem_seg_file_name") is None]
    if unlabelled and (is_train or len(unlabelled) < len(samples)):
        raise ValueError(
            f"dataset {name!r}: {len(unlabelled)} of {len(samples)} images have no label, the first is {unlabelled[0]}"
        )
    files = [sample[key] for sample in samples for key in ("file_name", "sem_seg_file_name") if sample.get(key)]
    if missing := find_missing(files):
        message = f"dataset {name!r}: {len(missing)} files are missing, the first is {missing[0]}"
        if not skip:
            raise FileNotFoundError(message)
        logger.warning("%s", message)
    metadata = MetadataCatalog.get(name)
    picked = samples[:: -(-len(samples) // SAMPLES)]
    checks = [check_sample(sample, metadata).problems for sample in picked]
    for problem in [problems[0] for problems in checks if problems]:
        if not skip or all(checks):
            raise ValueError(f"dataset {name!r}: {problem}")
        logger.warning("dataset %r: %s", name, problem)


def check_prediction(cfg: CfgNode, network: nn.Module, name: str) -> None:
    """Predict one image of a test dataset as an evaluation would, unless that takes too long."""
    sample = load_dicts(name)[0]
    inputs = SemSegMapper(cfg, is_train=False)(sample)
    segment = build_inference_model(cfg, network)
    views = getattr(segment, "views", [(1.0, False)])
    pixels = inputs["image"][0].numel() * sum(scale**2 for scale, _ in views)
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        window = cfg.TEST.SLIDING_WINDOW
        pixels *= max(1.0, np.prod(window.SIZE) / np.prod(window.STRIDE))  # windows overlap
    with inference_context(segment), torch.no_grad():
        try:
            if pixels > CHEAP:
                height, width = cfg.TEST.SLIDING_WINDOW.SIZE if cfg.TEST.SLIDING_WINDOW.ENABLED else (TRIAL, TRIAL)
                seconds = pixels * _seconds_per_pixel(network, inputs["image"][:, :height, :width])
                if seconds > MAX_SECONDS:
                    logger.info("A prediction of %s takes some %.0f s: none is tried", name, seconds)
                    return
            outputs = segment([inputs])
            if "sem_seg_file_name" in sample:
                evaluator = build_evaluator(cfg, name)
                evaluator.reset()
                evaluator.process([inputs], outputs)
        except Exception as error:
            if explain(error) is not None:
                raise
            raise RuntimeError(
                f"{sample['file_name']} of dataset {name!r} cannot be predicted, so that the first evaluation would "
                f"fail: {type(error).__name__}: {error}"
            ) from error


def _seconds_per_pixel(network: nn.Module, image: Tensor) -> float:
    """How long a network takes for an image, by its pixels; 0 if it does not take this size, but perhaps others."""
    start = time.monotonic()
    try:
        network([{"image": image}])
    except (ValueError, RuntimeError):
        return 0.0
    return (time.monotonic() - start) / image[0].numel()


def find_missing(files: Sequence[str]) -> list[str]:
    """The files that do not exist. The search ends after SECONDS."""
    deadline = time.monotonic() + SECONDS
    with ThreadPoolExecutor(16) as pool:
        is_there = pool.map(lambda file: time.monotonic() > deadline or PathManager.isfile(file), files)
        return [file for file, there in zip(files, is_there) if not there]

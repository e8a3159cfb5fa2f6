"""The data loaders that a config asks for."""

from itertools import chain

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from torch.utils.data import DataLoader

from .class_frequencies import count_label_pixels, repeat_factor_sampler
from .mapper import SemSegMapper


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """An endless loader of batches of ``DATASETS.TRAIN``.

    ``DATALOADER.SAMPLER_TRAIN`` takes Detectron2's samplers; "RepeatFactorTrainingSampler" goes by the classes in
    the label maps, with ``DATALOADER.REPEAT_THRESHOLD``.
    """
    datasets = {name: get_detection_dataset_dicts(name, filter_empty=False) for name in cfg.DATASETS.TRAIN}
    sampler = None
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        counts = np.concatenate([count_label_pixels(name, dicts) for name, dicts in datasets.items()])
        sampler = repeat_factor_sampler(counts, cfg.DATALOADER.REPEAT_THRESHOLD)
    return build_detection_train_loader(
        cfg,
        mapper=SemSegMapper(cfg, is_train=True),
        dataset=list(chain(*datasets.values())),
        sampler=sampler,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """A loader that gives every image of a dataset once, one per batch."""
    return build_detection_test_loader(cfg, dataset_name, mapper=SemSegMapper(cfg, is_train=False))

"""The data loaders that a config asks for."""

from collections.abc import Mapping
from itertools import chain

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from torch.utils.data import DataLoader

from .class_frequencies import count_label_pixels, repeat_factor_sampler
from .mapper import SemSegMapper
from .metadata import shown


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """An endless loader of batches of ``DATASETS.TRAIN``.

    ``DATALOADER.SAMPLER_TRAIN`` takes Detectron2's samplers; "RepeatFactorTrainingSampler" goes by the classes in
    the label maps, with ``DATALOADER.REPEAT_THRESHOLD`` and, where Detectron2 has it, ``REPEAT_SQRT``.

    Raises:
        KeyError, OSError, ValueError: as :func:`load_dicts`, :func:`~.metadata.check_metadata` and
            :func:`~.metadata.check_same_classes`; or there is no dataset to train on.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: expected the names of one or more datasets to train on")
    datasets = {name: load_dicts(name) for name in cfg.DATASETS.TRAIN}
    sampler = None
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        counts = np.concatenate([count_label_pixels(name, dicts) for name, dicts in datasets.items()])
        # REPEAT_SQRT is a key of newer Detectron2 alone.
        sqrt = cfg.DATALOADER.get("REPEAT_SQRT", True)
        sampler = repeat_factor_sampler(counts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt)
    return build_detection_train_loader(
        cfg,
        mapper=SemSegMapper(cfg, is_train=True),
        dataset=list(chain(*datasets.values())),
        sampler=sampler,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """A loader that gives every image of a dataset once, one per batch."""
    return build_detection_test_loader(
        load_dicts(dataset_name), mapper=SemSegMapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def load_dicts(name: str) -> list[dict]:
    """Dataset dicts of a registered dataset, each with ``dataset_name``, by which its label is decoded.

    They are new dicts: those of the dataset stay as they are.

    Raises:
        KeyError: there is no such dataset.
        OSError, ValueError: it cannot be loaded, has no images, or one without ``file_name``.
    """
    dicts = list(DatasetCatalog.get(name))
    if not dicts:
        raise ValueError(f"dataset {name!r} has no images")
    for i, sample in enumerate(dicts):
        if not isinstance(sample, Mapping) or "file_name" not in sample:
            raise ValueError(f"dataset {name!r}: image {i} is {shown(sample)}, expected a dict with 'file_name'")
    return [{**sample, "dataset_name": name} for sample in dicts]

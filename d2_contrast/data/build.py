"""The data loaders that a config asks for."""

import logging
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader

from ..arrivals import arrive
from .class_frequencies import count_label_pixels, repeat_factors
from .mapper import SemSegMapper
from .metadata import shown
from .stream import SampleStream

SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)

logger = logging.getLogger(__name__)


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """An endless loader of batches of ``DATASETS.TRAIN``, which a :class:`~.stream.SampleStream` feeds.

    Its seed is SEED, or one drawn with NumPy if that is negative. To be called in all processes.

    Raises:
        KeyError, OSError, ValueError: as :func:`load_dicts`, :func:`~.metadata.check_metadata` and
            :func:`~.metadata.check_same_classes`; there is no dataset to train on, or no such way of
            sampling.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: expected the names of one or more datasets to train on")
    images, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if images < 1 or images % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}: expected a multiple of the {processes} processes of the job"
        )
    datasets = {name: load_dicts(name) for name in cfg.DATASETS.TRAIN}
    arrive()
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING  # by the main process, of samples that workers give one by one
    stream = SampleStream(
        list(chain(*datasets.values())),
        SemSegMapper(cfg, is_train=True),
        batch_size=1 if grouped else images // processes,
        seed=seed,
        repeats=count_repeats(cfg, datasets),
        subset=count_subset(cfg, datasets),
    )
    return build_detection_train_loader(
        stream,
        mapper=None,
        total_batch_size=images,
        aspect_ratio_grouping=grouped,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def count_repeats(cfg: CfgNode, datasets: Mapping[str, Sequence[dict]]) -> Tensor:
    """How often each image comes in an epoch: (N,), by DATALOADER.SAMPLER_TRAIN, which names samplers of Detectron2.

    Those that balance classes go by the label maps, with ``DATALOADER.REPEAT_THRESHOLD`` and, where Detectron2 has it,
    ``REPEAT_SQRT``.

    Args:
        cfg: the config.
        datasets: dicts of each dataset, by name, N in all.

    Raises:
        ValueError: there is no such sampler, it leaves no image, or it has a factor for a dataset that is not there.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler not in SAMPLERS:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    repeats = torch.ones(sum(map(len, datasets.values())))
    if sampler in ("RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"):
        skip = cfg.DATALOADER.ON_ERROR == "skip"
        counts = np.concatenate([count_label_pixels(name, dicts, skip) for name, dicts in datasets.items()])
        # Keys that are read by get() here are those of newer Detectron2 alone.
        repeats = repeat_factors(counts, cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.get("REPEAT_SQRT", True))
    if sampler in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        weights = dict(cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", ()))
        for name in weights:
            if name not in datasets:
                raise ValueError(
                    f"DATASETS.TRAIN_REPEAT_FACTOR has a factor for {shown(name)}, which DATASETS.TRAIN does not name: "
                    f"expected one of {', '.join(datasets)}"
                )
        repeats = repeats * torch.cat([torch.full((len(d),), weights.get(name, 1.0)) for name, d in datasets.items()])
    if not repeats.sum():
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN {sampler} leaves none of the {len(repeats)} images")
    if (repeats != 1).any():
        logger.info("%s: %d images become %.1f per epoch", sampler, len(repeats), float(repeats.sum()))
    return repeats


def count_subset(cfg: CfgNode, datasets: Mapping[str, Sequence[dict]]) -> int | None:
    """How many images "RandomSubsetTrainingSampler" takes of those of all datasets; None for another sampler.

    Raises:
        ValueError: it takes none.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "RandomSubsetTrainingSampler":
        return None
    ratio, images = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0), sum(map(len, datasets.values()))
    if not (subset := int(images * ratio)):
        raise ValueError(f"DATALOADER.RANDOM_SUBSET_RATIO {ratio} leaves none of the {images} images")
    return subset


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

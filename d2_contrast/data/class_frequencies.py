"""Class frequencies of a dataset, and repeat-factor sampling by them."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler
from iopath.common.file_io import file_lock
from torch import Tensor

from .datasets.register import datasets_root
from .files import as_file_name, read_raw_label
from .labels import count_label, label_table
from .metadata import get_ignore_label

logger = logging.getLogger(__name__)


def count_label_pixels(dataset_name: str, dataset_dicts: Sequence[dict], skip: bool = False) -> np.ndarray:
    """Count the pixels of each class in each label map of a dataset.

    The result is kept in ``$DETECTRON2_DATASETS/.label_counts`` and found there again as long as the files are the
    same. Several processes may ask at once: one counts, the others wait for it.

    Args:
        dataset_name: name of the dataset, for its metadata.
        dataset_dicts: its N dicts, each with ``sem_seg_file_name``.
        skip: count label maps that cannot be used as without pixels, with a warning, and keep no result then, since
            they may be mended.

    Returns:
        (N, number of classes) int64 array; ignored pixels are not counted.

    Raises:
        ValueError: a dict has no label.
        OSError, ValueError: as :func:`~d2_contrast.data.read_label`, without ``skip``.
    """
    for sample in dataset_dicts:
        if "sem_seg_file_name" not in sample:
            raise ValueError(f"{sample['file_name']} of dataset {dataset_name!r} has no label to count")
    name = f"{as_file_name(dataset_name)}-{_fingerprint(dataset_name, dataset_dicts)}.npy"
    cache = datasets_root() / ".label_counts" / name
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(cache)):
            if cache.exists():
                return np.load(cache)
            counts, is_whole = _count(dataset_name, dataset_dicts, skip)
            if is_whole:
                partial = cache.with_suffix(".partial.npy")
                np.save(partial, counts)
                partial.replace(cache)
            return counts
    except OSError as e:
        if not isinstance(e, PermissionError) and e.errno != errno.EROFS:
            raise
        logger.warning("%s cannot be written: labels are counted again in every run", cache.parent)
        return _count(dataset_name, dataset_dicts, skip)[0]


def repeat_factors(counts: np.ndarray, threshold: float, sqrt: bool = True) -> Tensor:
    """How often each image comes in an epoch, so that rare classes are seen more often.

    A class in a share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest factor of
    its classes (Gupta et al., LVIS, CVPR 2019).

    Args:
        counts: (N, C) pixels of each class in each image.
        threshold: share of images below which a class counts as rare.
        sqrt: False for factors without the square root.

    Returns:
        (N,) float factors, 1 or more.
    """
    images = [{"annotations": [{"category_id": c} for c in np.flatnonzero(row).tolist()]} for row in counts]
    factors = torch.as_tensor(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(images, threshold))
    return factors if sqrt else factors.square()  # which keeps 1 and the order, so that it can be done last


def _count(dataset_name: str, dataset_dicts: Sequence[dict], skip: bool) -> tuple[np.ndarray, bool]:
    """The pixels of each class in each label map, and whether all of them could be used."""
    metadata = MetadataCatalog.get(dataset_name)
    errors: list[Exception] = []
    logger.info("Counting the pixels of each class in %d label maps of %s", len(dataset_dicts), dataset_name)

    def count(sample: dict) -> np.ndarray:
        label_file = sample["sem_seg_file_name"]
        try:
            return count_label(read_raw_label(label_file), label_file, metadata)[0]
        except (OSError, ValueError) as error:
            if not skip:
                raise
            errors.append(error)
            return np.zeros(len(metadata.stuff_classes), np.int64)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases Python's lock
        counts = np.stack(list(pool.map(count, dataset_dicts)))
    if errors:
        logger.warning(
            "%d label maps of %s cannot be used and count as without pixels, one of them: %s",
            len(errors),
            dataset_name,
            errors[0],
        )
    return counts, not errors


def _fingerprint(dataset_name: str, dataset_dicts: Sequence[dict]) -> str:
    """A hash that changes with the label files and with their meaning."""
    metadata = MetadataCatalog.get(dataset_name)
    files = [Path(sample["sem_seg_file_name"]) for sample in dataset_dicts]
    # A missing file is reported by the code that reads it.
    stats = [(str(f.absolute()), *((f.stat().st_size, f.stat().st_mtime_ns) if f.exists() else ())) for f in files]
    meaning = sorted(label_table(metadata).items()), get_ignore_label(metadata), len(metadata.stuff_classes)
    return hashlib.sha256(json.dumps([stats, meaning]).encode()).hexdigest()[:16]

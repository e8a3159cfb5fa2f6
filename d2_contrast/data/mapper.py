"""From a dataset dict to what a segmentor trains on or predicts from."""

import copy
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog, detection_utils
from detectron2.data import transforms as T

from .augmentation import build_train_augmentation
from .files import limit_pixels, read_image
from .labels import read_label
from .metadata import check_metadata, check_same_classes, get_ignore_label
from .skipped import SkippedSamples


def build_test_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """What brings images to the size at which a network predicts them: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST."""
    if cfg.INPUT.MIN_SIZE_TEST <= 0:
        return []
    return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]


class SemSegMapper:
    """Read, augment and tensorise one sample; for Detectron2's train and test loaders.

    Args:
        is_train: read labels and return them; otherwise only the image is read.
        augmentations: applied to image and label alike.
        image_format: "RGB" or "BGR", the channel order that the network takes.
        metadata: of each dataset, by name, for the labels. A dataset dict says by ``dataset_name`` which is its own;
            it may leave that out where there is one dataset only.
        max_pixels: larger images are refused; None for Pillow's own limit.
        skipped: takes note of samples that cannot be used; None raises their errors.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        metadata: Mapping[str, Metadata],
        max_pixels: int | None = None,
        skipped: SkippedSamples | None = None,
    ):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.metadata = metadata
        self.max_pixels = max_pixels
        self.skipped = skipped
        logging.getLogger(__name__).debug(
            "Augmentations in %s: %s", "training" if is_train else "inference", augmentations
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        metadata = {name: MetadataCatalog.get(name) for name in names}
        if is_train:
            for m in metadata.values():
                check_metadata(m)
            check_same_classes(list(metadata.values()))
            augmentations = build_train_augmentation(cfg, get_ignore_label(metadata[names[0]]))
        else:
            augmentations = build_test_augmentation(cfg)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "metadata": metadata,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "skipped": SkippedSamples(cfg.OUTPUT_DIR) if is_train and cfg.DATALOADER.ON_ERROR == "skip" else None,
        }

    def __call__(self, dataset_dict: dict) -> dict | None:
        """Map a dataset dict, which is left as it is.

        Returns:
            The dict's own entries and

            - ``image``: (C, H, W) uint8 tensor;
            - ``sem_seg``: (H, W) int64 tensor of train ids and the ignore label, in training;
            - ``height``, ``width``: size of the image on disk, pixels.

            None for a sample that cannot be used where ``skipped`` takes note of it: loaders take another one.

        Raises:
            OSError: a file is missing or damaged.
            ValueError: an image or a label is of a wrong kind, or a label does not fit its image or its dataset, or is
                missing in training.
        """
        if self.max_pixels is not None:
            limit_pixels(self.max_pixels)  # here, as this may be a process of its own
        try:
            sample = self._map(dataset_dict)
        except (OSError, ValueError) as error:
            if self.skipped is None:
                raise
            self.skipped.add(str(dataset_dict.get("file_name")), error)
            return None
        if self.skipped is not None:
            self.skipped.note_success()
        return sample

    def _map(self, dataset_dict: dict) -> dict:
        sample = copy.deepcopy(dataset_dict)
        image = read_image(sample["file_name"], self.image_format)
        detection_utils.check_image_size(sample, image)  # also fills in height and width

        aug_input = T.AugInput(image, sem_seg=self._read_label(sample, image) if self.is_train else None)
        self.augmentations(aug_input)
        sample["image"] = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())
        if self.is_train:
            sample["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        return sample

    def _read_label(self, sample: dict, image: np.ndarray) -> np.ndarray:
        label_file = sample.get("sem_seg_file_name")
        if label_file is None:
            raise ValueError(f"{sample['file_name']}: this image has no label, training needs one")
        label = read_label(label_file, self._metadata_of(sample))
        if label.shape != image.shape[:2]:
            raise ValueError(
                "image and label differ in size: "
                f"{sample['file_name']} has {image.shape[0]} x {image.shape[1]} (height x width), "
                f"{label_file} has {label.shape[0]} x {label.shape[1]}"
            )
        return label

    def _metadata_of(self, sample: dict) -> Metadata:
        name = sample.get("dataset_name")
        if name is None and len(self.metadata) == 1:
            return next(iter(self.metadata.values()))
        if name not in self.metadata:
            raise ValueError(
                f"{sample['file_name']}: the 'dataset_name' of this image is {name!r}, which does not say how to read "
                f"its label: expected one of {list(self.metadata)} (build_train_loader adds it)"
            )
        return self.metadata[name]

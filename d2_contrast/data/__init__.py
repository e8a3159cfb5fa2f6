"""Datasets, mappers and samplers. Importing this package registers the datasets."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)

# isort: split
import cv2

from . import datasets
from .build import build_test_loader, build_train_loader, load_dicts
from .checks import check_dataset, check_sample, describe_missing_classes
from .class_frequencies import count_label_pixels, repeat_factors
from .classes import Classes, class_colors
from .datasets.folders import register_folders
from .files import read_image
from .labels import read_label
from .mapper import SemSegMapper
from .metadata import check_metadata, check_same_classes, get_ignore_label
from .stream import SampleStream, find_stream

# Loader workers are the threads here: OpenCV's own would compete with them, and can hang in forked processes.
cv2.setNumThreads(0)

__all__ = [
    "Classes",
    "SampleStream",
    "SemSegMapper",
    "build_test_loader",
    "build_train_loader",
    "check_dataset",
    "check_metadata",
    "check_same_classes",
    "check_sample",
    "class_colors",
    "count_label_pixels",
    "datasets",
    "describe_missing_classes",
    "find_stream",
    "get_ignore_label",
    "load_dicts",
    "read_image",
    "read_label",
    "register_folders",
    "repeat_factors",
]

"""Checks of the files of a dataset, one by one and all together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import Metadata

from .files import read_image, read_raw_label
from .labels import count_label
from .metadata import get_ignore_label

# At most this many classes without a pixel are named.
MAX_NAMED = 10
# Ignored pixels are mentioned from this share on if several classes have no pixel, and always if one class has none.
LARGE_IGNORED_SHARE = 0.05


@dataclass
class SampleCheck:
    """What is in an image and its label.

    Attributes:
        problems: what is wrong with them, a sentence each.
        classes: (C,) pixels of each class; None if there is no label, or none that can be read.
        ignored: pixels of each ignored value in the label file.
    """

    problems: list[str] = field(default_factory=list)
    classes: np.ndarray | None = None
    ignored: dict[int, int] = field(default_factory=dict)


def check_sample(sample: Mapping, metadata: Metadata) -> SampleCheck:
    """Read an image and its label, if it has one."""
    check = SampleCheck()
    image = label = None
    try:
        image = read_image(sample["file_name"])
    except (OSError, ValueError) as error:
        check.problems.append(str(error))
    label_file = sample.get("sem_seg_file_name")
    if label_file is None:
        return check
    if label_file == sample["file_name"]:
        check.problems.append(f"{label_file}: this file is both image and label")
    try:
        label = read_raw_label(label_file)
        check.classes, check.ignored = count_label(label, label_file, metadata)
    except (OSError, ValueError) as error:
        check.problems.append(str(error))
    if image is not None and label is not None and image.shape[:2] != label.shape:
        sizes = " x ".join(map(str, label.shape)), " x ".join(map(str, image.shape[:2]))
        check.problems.append(f"{label_file}: the label has {sizes[0]} pixels (height x width), its image {sizes[1]}")
    return check


def describe_missing_classes(
    metadata: Metadata, classes: Sequence[int], ignored: int, ignored_values: Collection[int] = ()
) -> str | None:
    """Name the classes that no pixel of a dataset has, and ignored pixels that may be theirs.

    Args:
        metadata: of the dataset.
        classes: pixels of each class.
        ignored: pixels that are ignored.
        ignored_values: values of the label files that they have, where known.

    Returns:
        A sentence without a full stop, or None if every class has pixels.
    """
    names = metadata.stuff_classes
    missing = [n for i, n in enumerate(names) if not classes[i] and i != get_ignore_label(metadata)]
    if not missing:
        return None
    listed = ", ".join(map(repr, missing[:MAX_NAMED])) + ", ..." * (len(missing) > MAX_NAMED)
    note = f"No pixel in the labels of {metadata.name} is of class {listed} ({len(missing)} of {len(names)} classes)"
    share = ignored / max(ignored + int(sum(classes)), 1)
    if ignored and (len(missing) == 1 or share >= LARGE_IGNORED_SHARE):
        values = f" (label value {', '.join(map(str, sorted(ignored_values)))})" if ignored_values else ""
        which = missing[0] if len(missing) == 1 else "one of them"
        note += (
            f", while {share:.1%} of all pixels are ignored{values}: should they be {which}? Then give that class "
            "their label value (values in DATASETS.FOLDERS, or label_encodings)"
        )
    return note

"""Checks of the files of a dataset, one by one and all together."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from .build import load_dicts
from .files import Color, read_image, read_palette, read_raw_label
from .labels import count_label, count_values
from .metadata import check_metadata, get_ignore_label

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
        palette: colours that the label file gives to the values in it, {} if it gives none.
    """

    problems: list[str] = field(default_factory=list)
    classes: np.ndarray | None = None
    ignored: dict[int, int] = field(default_factory=dict)
    palette: dict[int, Color] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetCheck:
    """What is in the files of a dataset.

    Attributes:
        classes: names, by train id.
        samples: dataset dicts.
        checks: of each of them.
        problems: what is wrong, a sentence each.
        warnings: what may be right but looks odd.
    """

    classes: Sequence[str]
    samples: Sequence[dict]
    checks: Sequence[SampleCheck]
    problems: Sequence[str]
    warnings: Sequence[str]

    @property
    def counted(self) -> list[SampleCheck]:
        """The checks of samples whose labels could be read."""
        return [check for check in self.checks if check.classes is not None]

    @property
    def intact(self) -> list[dict]:
        """The samples without problems."""
        return [sample for sample, check in zip(self.samples, self.checks, strict=True) if not check.problems]

    def class_table(self) -> str:
        """Share of images and of pixels of each class, and of ignored pixels, as a table for the terminal."""
        counts = np.array([[*check.classes, sum(check.ignored.values())] for check in self.counted])
        pixels = counts.sum(axis=0) / counts.sum()
        images = (counts > 0).mean(axis=0)
        rows = [
            ("" if i == len(self.classes) else i, name, f"{images[i]:.2%}", f"{pixels[i]:.3%}")
            for i, name in enumerate([*self.classes, "(ignored)"])
        ]
        return tabulate(rows, ["train id", "class", "images", "pixels"], colalign=("right", "left", "right", "right"))


def check_dataset(name: str) -> DatasetCheck:
    """Read every image and label of a registered dataset, with a progress bar on a terminal.

    Raises:
        KeyError: there is no such dataset.
        OSError, ValueError: it cannot be loaded, or its metadata is invalid.
    """
    samples = load_dicts(name)
    metadata = MetadataCatalog.get(name)
    check_metadata(metadata)
    problems: list[str] = []
    warnings: list[str] = []
    published = metadata.get("num_images")
    if published and len(samples) not in published:
        problems.append(f"{name} has {len(samples)} images, published: {' or '.join(map(str, published))}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda sample: check_sample(sample, metadata), samples)
        checks = list(tqdm(found, total=len(samples), unit="image", disable=None, leave=False))
    problems += [problem for check in checks for problem in check.problems]
    counted = [check for check in checks if check.classes is not None]
    if counted:
        classes = np.sum([check.classes for check in counted], axis=0)
        ignored = sum((Counter(check.ignored) for check in counted), Counter())
        if note := describe_missing_classes(metadata, classes, ignored.total(), ignored):
            # With a single class there is nothing to learn, unless labels that cannot be read have others.
            hopeless = np.count_nonzero(classes) < 2 and not problems
            (problems if hopeless else warnings).append(note)
    palettes = {s["sem_seg_file_name"]: check.palette for s, check in zip(samples, checks) if check.palette}
    if note := describe_palettes(palettes):
        warnings.append(
            f"{note}: labels are read by their values, so if the colours stand for the classes, the values do not; "
            "`d2-contrast init` writes label maps by colours"
        )
    return DatasetCheck(metadata.stuff_classes, samples, checks, problems, warnings)


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
        if palette := read_palette(label_file):
            check.palette = {value: palette[value] for value in count_values(label) if value in palette}
    except (OSError, ValueError) as error:
        check.problems.append(str(error))
    if image is not None and label is not None and image.shape[:2] != label.shape:
        sizes = " x ".join(map(str, label.shape)), " x ".join(map(str, image.shape[:2]))
        check.problems.append(f"{label_file}: the label has {sizes[0]} pixels (height x width), its image {sizes[1]}")
    return check


def describe_palettes(palettes: Mapping[str, Mapping[int, Color]]) -> str | None:
    """Say which value has different colours in some label maps, as one that an editor has written with its own palette.

    Args:
        palettes: the colours of the values in each file, by its path.

    Returns:
        A sentence without a full stop, or None if every value has one colour.
    """
    first: dict[int, tuple[Color, str]] = {}
    for path, palette in palettes.items():
        for value, color in palette.items():
            known, other = first.setdefault(value, (color, path))
            if known != color:
                return f"The value {value} is the colour {known} in the palette of {other}, {color} in that of {path}"
    return None


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

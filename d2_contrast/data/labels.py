"""Label maps as train ids, whatever ids the files of a dataset hold.

A dataset says in its metadata how its label files are encoded:

- ``stuff_classes``: class names, train ids are their indices;
- ``ignore_label``: the train id that is left out of losses and metrics (255 if not given). It may be one of the
  classes, such as a background that does not count;
- ``label_encodings``: ``{name: {value in the file: train id}}``, every value that may occur, most likely
  encoding first. Without it, files hold train ids and the ignore label themselves;
- ``label_encoding``: the one that the files on disk have. It is set when the dataset is loaded, because it
  depends on the copy that the user has (see :func:`detect_label_encoding`).

Values in files and train ids are numbers from 0 to 65535.
"""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from detectron2.data import Metadata

from .files import read_raw_label
from .metadata import check_encodings, get_ignore_label

Encoding = Mapping[int, int]


def read_label(file_name: str, metadata: Metadata) -> np.ndarray:
    """Read a label map as train ids.

    Args:
        file_name: path of an image (8 or 16 bit, or with a palette) that holds class ids in one channel, or the same
            in each of several, or of a MATLAB file that holds them as ``LabelMap``.
        metadata: metadata of the dataset, see the top of this module.

    Returns:
        (H, W) array of train ids and ``metadata.ignore_label``: uint8, or int32 where that is too small (255 classes
        and more, or an ignore label above 255).

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is truncated or no image.
        ValueError: the file has different channels, is too large, or has a value that its encoding does not have.
    """
    return _to_train_ids(read_raw_label(file_name), file_name, metadata)


def count_label(raw: np.ndarray, file_name: str, metadata: Metadata) -> tuple[np.ndarray, dict[int, int]]:
    """Count the pixels of a label map as the file holds it (:func:`~.files.read_raw_label`).

    Returns:
        Pixels of each class, (C,) int64, 0 for a class that is ignored; and pixels of each ignored value in the file.

    Raises:
        ValueError: as :func:`read_label`.
    """
    table = label_table(metadata)
    ignore_label = get_ignore_label(metadata)
    classes = np.zeros(len(metadata.stuff_classes), dtype=np.int64)
    ignored = {}
    for value, pixels in count_values(raw).items():
        if value not in table:
            raise _unknown_value(value, pixels, file_name, metadata)
        if table[value] == ignore_label:
            ignored[value] = pixels
        else:
            classes[table[value]] += pixels
    return classes, ignored


def detect_label_encoding(file_names: Sequence[str], encodings: Mapping[str, Encoding], max_files: int = 64) -> str:
    """Find out which encoding label files have, from the values in some of them.

    Encodings are told apart by the values that they do not have (labels that start at 1 have no 255, for
    example). Where several fit, the one listed first is taken. A file that cannot be read, or that
    fits no encoding, is skipped here; reading its content later is an error.

    Args:
        file_names: label files of a dataset; at most ``max_files`` of them, evenly spread, are read.
        encodings: see ``label_encodings`` at the top of this module.

    Returns:
        The name of the encoding.

    Raises:
        ValueError: no encoding has the values of any file, or files have different ones.
    """
    if len(encodings) == 1:
        return next(iter(encodings))

    def fitting(values: Iterable[int]) -> list[str]:
        return [name for name, table in encodings.items() if table.keys() >= set(values)]

    picks = np.linspace(0, len(file_names) - 1, min(max_files, len(file_names))).round().astype(int)
    found_in: dict[int, str] = {}
    strange_in: dict[int, str] = {}
    for file_name in (file_names[i] for i in picks):
        try:
            raw = read_raw_label(file_name)
        except (OSError, ValueError):
            continue
        values = count_values(raw).keys()
        for value in values:
            (found_in if fitting(values) else strange_in).setdefault(value, file_name)
        if len(fitting(found_in)) <= 1:
            break
    found_in = found_in or strange_in
    if not fitting(found_in):
        wanted = "; ".join(f"{name} has {_ranges(t)}" for name, t in encodings.items())
        odd = max(found_in, key=lambda v: sum(v not in t for t in encodings.values()))
        raise ValueError(
            f"{file_name}: with this file the labels fit no known encoding ({wanted}); "
            f"values found so far: {_ranges(found_in)}, value {odd} first in {found_in[odd]}"
        )
    return fitting(found_in)[0]


def label_table(metadata: Metadata) -> Encoding:
    """The mapping ``{value in the file: train id}`` of a dataset, see the top of this module.

    Raises:
        ValueError: it is invalid, or the dataset has several encodings and was not loaded yet.
    """
    check_encodings(metadata)
    encodings = metadata.get("label_encodings")
    if encodings is None:
        ignore_label = get_ignore_label(metadata)
        return {**{i: i for i in range(len(metadata.stuff_classes))}, ignore_label: ignore_label}
    if len(encodings) == 1:
        return next(iter(encodings.values()))
    name = metadata.get("label_encoding")
    if name is None:
        raise ValueError(
            f"the label encoding of dataset {metadata.name!r} is found when it is loaded: call "
            f"DatasetCatalog.get({metadata.name!r}) before reading its labels"
        )
    return encodings[name]


def count_values(raw: np.ndarray) -> dict[int, int]:
    """Pixels of each value that occurs, in ascending order."""
    if raw.dtype == np.uint8:
        counts = np.bincount(raw.ravel(), minlength=256)
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    return dict(zip(*(x.tolist() for x in np.unique(raw, return_counts=True))))


def _to_train_ids(raw: np.ndarray, file_name: str, metadata: Metadata) -> np.ndarray:
    table = label_table(metadata)
    # What no value means stands for an error. Without room in 8 bits for it, or for the ignore label of padding, ids
    # are wider.
    meant = {*table.values(), get_ignore_label(metadata)}
    unused = set(range(256)) - meant if max(meant) < 256 else set()
    invalid, dtype = (max(unused), np.uint8) if unused else (-1, np.int32)
    size = max(256, max(table) + 2)
    lookup = np.full(size, invalid, dtype=dtype)
    lookup[list(table)] = list(table.values())
    if raw.dtype == np.uint8:
        label = cv2.LUT(raw, lookup[:256])
    else:  # the last entry is never a valid value, so that larger ones can be clipped to it
        label = lookup[np.where((raw < 0) | (raw >= size), size - 1, raw)]
    if (label == invalid).any():
        values, counts = np.unique(raw[label == invalid], return_counts=True)
        raise _unknown_value(values[0], counts[0], file_name, metadata)
    return label


def _unknown_value(value: int, pixels: int, file_name: str, metadata: Metadata) -> ValueError:
    return ValueError(
        f"{file_name}: label value {value} ({pixels} pixels) is outside the classes of dataset {metadata.name!r}: "
        f"expected {_ranges(label_table(metadata))}"
    )


def _ranges(values: Iterable[int]) -> str:
    """Write a set of integers as "0..18, 255"."""
    parts: list[list[int]] = []
    for v in sorted(values):
        if parts and v == parts[-1][1] + 1:
            parts[-1][1] = v
        else:
            parts.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)

"""Checks of the metadata of a dataset."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeGuard

import numpy as np
from detectron2.data import Metadata

from ..errors import shown

# Largest train id, and largest value in a label file: what an image of one channel can hold.
MAX_ID = 65535


def get_ignore_label(metadata: Metadata) -> int:
    """The train id that a dataset leaves out of losses and metrics.

    Raises:
        ValueError: it is no number from 0 to 65535.
    """
    ignore_label = metadata.get("ignore_label", 255)
    if not is_id(ignore_label):
        raise ValueError(
            f"dataset {metadata.name!r} has the ignore_label {ignore_label!r}: expected a number from 0 to {MAX_ID}; "
            "label_encodings says which values of the label files mean it"
        )
    return int(ignore_label)


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value can be a train id or a value in a label file."""
    is_number = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    return is_number and 0 <= value <= MAX_ID


def check_metadata(metadata: Metadata) -> None:
    """Check the entries that this project reads; the top of ``labels.py`` says what they are.

    Raises:
        ValueError: one is missing or invalid; the message names dataset, entry and value.
    """
    where = f"dataset {metadata.name!r}"
    names = metadata.get("stuff_classes")
    if names is None:
        raise ValueError(f"{where} has no stuff_classes in its metadata: it is no dataset for semantic segmentation")
    _check_names(where, names)
    names = list(names)
    ignore_label = get_ignore_label(metadata)
    if "ignore_label" not in metadata.as_dict() and ignore_label < len(names):
        raise ValueError(
            f"{where} has {len(names)} classes and no ignore_label, whose default {ignore_label} is its class "
            f"{names[ignore_label]!r}: set ignore_label in its metadata, such as {MAX_ID}"
        )
    learned = len(names) - (ignore_label < len(names))
    if learned < 2:
        raise ValueError(
            f"{where} has {learned} class to learn ({', '.join(names)}; ignore_label {ignore_label}): expected two or "
            "more, a single one needs another for everything else, such as background"
        )
    if len(names) > MAX_ID:
        raise ValueError(f"{where} has {len(names)} classes: expected at most {MAX_ID}")
    _check_colors(where, names, metadata.get("stuff_colors"))
    _check_groups(where, names, metadata.get("class_groups", {}))
    check_encodings(metadata)
    ids = metadata.get("submission_ids")
    if ids is not None and not (_is_list(ids) and len(ids) == len(names) and all(map(is_id, ids))):
        raise ValueError(f"{where} has the submission_ids {shown(ids)}: expected one from 0 to {MAX_ID} for each class")
    if not _is_list(metadata.get("num_images", [])):
        raise ValueError(f"{where} has the num_images {shown(metadata.num_images)}: expected a list of counts")


def check_same_classes(datasets: Sequence[Metadata]) -> None:
    """Check that the datasets of a run mean the same by each train id.

    Raises:
        ValueError: names, order or ignore label differ; the message names the first difference.
    """
    for other in datasets[1:]:
        first = datasets[0]
        a, b = list(first.stuff_classes), list(other.stuff_classes)
        if a != b:
            i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            x, y = (repr(names[i]) if i < len(names) else "missing" for names in (a, b))
            raise ValueError(
                f"class {i} is {x} in dataset {first.name!r} and {y} in dataset {other.name!r}: all datasets of a run "
                "need the same classes in the same order; label_encodings, or values in DATASETS.FOLDERS, say which "
                "label values mean them"
            )
        if get_ignore_label(first) != get_ignore_label(other):
            raise ValueError(
                f"dataset {first.name!r} has the ignore_label {get_ignore_label(first)}, dataset {other.name!r} "
                f"{get_ignore_label(other)}: all datasets of a run need the same"
            )


def check_encodings(metadata: Metadata) -> None:
    """Check ``label_encodings`` and ``label_encoding``, see :func:`check_metadata`."""
    encodings = metadata.get("label_encodings")
    if encodings is None:
        return
    where, num_classes = f"dataset {metadata.name!r}", len(metadata.stuff_classes)
    ignore_label = get_ignore_label(metadata)
    tables = encodings.items() if isinstance(encodings, Mapping) else ()
    if not tables or not all(isinstance(name, str) and isinstance(table, Mapping) for name, table in tables):
        raise ValueError(
            f"{where} has the label_encodings {shown(encodings)}: expected {{name: {{value in the file: train id}}}}"
        )
    for name, table in tables:
        if not table:
            raise ValueError(f"{where}, label encoding {name!r}: expected values and their train ids, found none")
        for value, train_id in table.items():
            if not is_id(value):
                raise ValueError(
                    f"{where}, label encoding {name!r}: a label file cannot hold the value {shown(value)}, expected "
                    f"whole numbers from 0 to {MAX_ID}"
                )
            if not is_id(train_id) or (train_id >= num_classes and train_id != ignore_label):
                raise ValueError(
                    f"{where}, label encoding {name!r}: value {value} means the train id {shown(train_id)}, expected "
                    f"0 to {num_classes - 1}, or {ignore_label} for ignored pixels"
                )
    chosen = metadata.get("label_encoding", next(iter(encodings)))
    if not isinstance(chosen, str) or chosen not in encodings:
        raise ValueError(f"{where} has the label_encoding {shown(chosen)}: expected one of {list(encodings)}")


def _check_names(where: str, names: Any) -> None:
    if not _is_list(names):
        raise ValueError(f"{where} has the classes {shown(names)}: expected a list of names")
    names = list(names)
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{where}: the name of class {i} is {shown(name)}, expected text; in yaml, names such as no, on, null "
                "and 1 need quotes"
            )
        if name in names[:i]:
            raise ValueError(f"{where}: classes {names.index(name)} and {i} are both named {name!r}")


def _check_colors(where: str, names: Sequence[str], colors: Any) -> None:
    if colors is None:
        return
    if not _is_list(colors) or len(colors) != len(names):
        raise ValueError(f"{where} has the colours {shown(colors)}: expected one for each of its {len(names)} classes")
    for name, color in zip(names, colors):
        if not _is_list(color) or len(color) != 3 or not all(is_id(v) and v <= 255 for v in color):
            raise ValueError(
                f"{where}: class {name!r} has the colour {shown(color)}, expected red, green and blue from 0 to 255, "
                "such as [120, 180, 80]"
            )


def _check_groups(where: str, names: Sequence[str], groups: Any) -> None:
    if not isinstance(groups, Mapping):
        raise ValueError(f"{where} has the groups {shown(groups)}: expected group names with lists of class names")
    for group, members in groups.items():
        if not isinstance(group, str) or not _is_list(members) or not members:
            raise ValueError(
                f"{where}: the group {shown(group)} is {shown(members)}, expected a name with a list of class names"
            )
        for i, member in enumerate(members):
            if member not in names:
                raise ValueError(f"{where}: the group {group!r} has the class {shown(member)}, there are {list(names)}")
            if member in members[:i]:
                raise ValueError(f"{where}: the group {group!r} has the class {member!r} twice")


def _is_list(value: object) -> TypeGuard[Sequence]:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))

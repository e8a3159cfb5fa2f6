"""Datasets that are folders of images and label maps, described in a config: ``DATASETS.FOLDERS``.

    DATASETS:
      FOLDERS:
        - name: garden_train
          images: garden/images/train     # below DETECTRON2_DATASETS, or absolute; subfolders count
          labels: garden/labels/train     # the same file names with label_suffix; leave out if there are none
          classes: [lawn, path, bed]      # or the path of a yaml file with such a list
    optional:
          label_suffix: .png
          ignore_values: [255]            # label values of pixels that belong to no class
          groups: {rare: [bed]}           # classes whose mean IoU is reported together
          files: garden_train.txt         # these images alone: a text file with their paths below ``images``, one a
                                          # line; a tab and the label's path below ``labels`` may follow

A class is a name, or ``{name: path, color: [200, 180, 140], values: [7, 8]}``. Without ``values`` label files hold
positions in the list of classes. Images and labels may share a folder: a label map is no image.

The ignore label is 255. With more than 255 classes it is 65535, which is then the default of ``ignore_values``, too.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, Metadata

from ...config_files import load_yaml
from ...errors import shown
from ..files import is_utf8, read_text
from ..metadata import MAX_ID, check_metadata, is_id
from .register import Pair, datasets_root, list_images, register_dataset

REQUIRED = {"name", "images", "classes"}
OPTIONAL = {"labels", "label_suffix", "ignore_values", "groups", "files"}
CLASS_KEYS = {"name", "color", "values"}

_registered: dict[str, Mapping] = {}


def register_folders(entries: Sequence[Mapping]) -> None:
    """Register the datasets of ``DATASETS.FOLDERS``, see the top of this module.

    A second call with the same entries changes nothing.

    Raises:
        ValueError: a name is taken, or an entry has a key or a value that it should not have; the message shows it.
        FileNotFoundError: the file of its classes does not exist.
    """
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"DATASETS.FOLDERS is {shown(entries)}: expected a list of datasets, each a mapping")
    for i, entry in enumerate(entries):
        where = _check_entry(entry, i + 1)
        name = entry["name"]
        if _registered.get(name) == entry:
            continue
        if name in DatasetCatalog:
            raise ValueError(f"{where}: there is another dataset named {name!r}")
        register_dataset(name, lambda root, entry=entry: find(root, entry), **_describe(where, entry))
        _registered[name] = dict(entry)


def describe_folders(entries: Sequence[Mapping]) -> dict[str, Metadata]:
    """The metadata of some entries by their names, as :func:`register_folders` would register them; errors as there."""
    return {
        entry["name"]: Metadata(name=entry["name"], **_describe(_check_entry(entry, i), entry))
        for i, entry in enumerate(entries, start=1)
    }


def _check_entry(entry: Mapping, number: int) -> str:
    """Check the keys of an entry and return what to call it in messages."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"DATASETS.FOLDERS, entry {number}: expected a mapping with the keys {sorted(REQUIRED)}, found "
            f"{shown(entry)}"
        )
    where = f"DATASETS.FOLDERS, entry {entry.get('name', f'number {number}')!r}"
    if not REQUIRED <= entry.keys() <= REQUIRED | OPTIONAL:
        raise ValueError(
            f"{where}: expected the keys {sorted(REQUIRED)} and maybe {sorted(OPTIONAL)}, found "
            f"{sorted(entry, key=str)}"
        )
    _check_texts(where, entry)
    return where


def _describe(where: str, entry: Mapping) -> dict[str, Any]:
    """The metadata of the dataset that an entry describes."""
    classes = _read_classes(where, entry["classes"])
    ignore_label = 255 if len(classes) <= 255 else MAX_ID
    metadata = {
        "stuff_classes": [c["name"] for c in classes],
        "ignore_label": ignore_label,
        "class_groups": entry.get("groups", {}),
        **({"stuff_colors": [c["color"] for c in classes]} if "color" in classes[0] else {}),
    }
    try:
        check_metadata(Metadata(name=entry["name"], **metadata))
    except ValueError as e:
        raise ValueError(f"DATASETS.FOLDERS: {e}") from e

    ignored = _values(where, "ignore_values", entry.get("ignore_values", [ignore_label]))
    table = dict.fromkeys(ignored, ignore_label)
    for train_id, c in enumerate(classes):
        values = _values(where, f"the values of class {c['name']!r}", c.get("values", train_id))
        if not values:
            raise ValueError(f"{where}: class {c['name']!r} has an empty list of values, so it would never occur")
        for value in values:
            if value in table:
                other = "in ignore_values" if table[value] == ignore_label else repr(classes[table[value]]["name"])
                raise ValueError(f"{where}: label value {value} has two meanings, {c['name']!r} and {other}")
            table[value] = train_id
    return {
        **metadata,
        "label_encodings": {"values of the config": table},
        "images_folder": entry["images"],
        "has_labels": "labels" in entry,
    }


def find(root: Path, entry: Mapping) -> list[Pair]:
    """Images and labels of an entry.

    Raises:
        FileNotFoundError: a folder or the list of files does not exist, or there are no images.
        ValueError: an image would be its own label, or a line of the list has more than two paths.
    """
    folder = root / Path(entry["images"]).expanduser()  # an absolute path stays as it is
    if "files" in entry:
        return _find_listed(root, folder, entry)
    images = list_images(folder, "**/*")
    if "labels" not in entry:
        return [(image, None) for image in images]
    labels = root / Path(entry["labels"]).expanduser()
    if not labels.is_dir():
        raise FileNotFoundError(f"there is no folder {labels}, which entry {entry['name']!r} names as its labels")
    suffix = entry.get("label_suffix", ".png")

    # Label maps may lie among the images, and the same folder may be spelled in two ways.
    if labels.resolve().is_relative_to(folder.resolve()):
        labels = folder / labels.resolve().relative_to(folder.resolve())
        if labels != folder:
            images = [image for image in images if labels not in image.parents]
    label_of = {image: labels / f"{image.relative_to(folder).with_suffix('')}{suffix}" for image in images}
    of_others = {label for image, label in label_of.items() if label != image}
    suffix_is_telling = labels == folder and not re.fullmatch(r"\.\w+", suffix)  # "_mask.png", not ".png"
    pairs: list[Pair] = []
    for image, label in label_of.items():
        without_image = suffix_is_telling and image.name.endswith(suffix) and not label.exists()
        if image in of_others or without_image:
            continue
        if image == label:
            raise ValueError(
                f"DATASETS.FOLDERS, entry {entry['name']!r}: {image} would be its own label, as images and labels "
                f"share a folder and label_suffix is {suffix!r}: give the suffix that tells labels from images, or "
                "the folder of the labels; a label map without image has to be moved elsewhere"
            )
        pairs.append((image, label))
    if not pairs:
        raise FileNotFoundError(f"{folder} has label maps ({suffix}) but no images")
    return pairs


def is_label_suffix(suffix: str) -> bool:
    """Whether names of label maps may end so: with the type of a file, but not JPEG."""
    return bool(re.search(r"\.\w+$", suffix)) and not suffix.lower().endswith((".jpg", ".jpeg"))


def _find_listed(root: Path, folder: Path, entry: Mapping) -> list[Pair]:
    """Images and labels of an entry with a list of files."""
    path = root / Path(entry["files"]).expanduser()
    text = read_text(path, "surrogateescape")
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise FileNotFoundError(f"{path} names no images: expected their paths below {folder}, one a line")
    pairs: list[Pair] = []
    for number, line in lines:
        image, *labels = line.split("\t")
        if len(labels) > ("labels" in entry):
            raise ValueError(
                f"{path}, line {number}: expected the path of an image"
                + (", or that and the path of its label with a tab between" if "labels" in entry else "")
                + f", found {shown(line)}"
            )
        label = None
        if "labels" in entry:
            default = str(Path(image).with_suffix("")) + entry.get("label_suffix", ".png")
            label = root / Path(entry["labels"]).expanduser() / (labels[0] if labels else default)
        pair = (folder / image, label)
        if not is_utf8(line) and not all(file.exists() for file in pair if file):
            raise ValueError(
                f"{path}, line {number}: {shown(line)} is not UTF-8, and there is no file of this name: save the list "
                "as UTF-8"
            )
        pairs.append(pair)
    return pairs


def _check_texts(where: str, entry: Mapping) -> None:
    """Check the keys whose values are text."""
    for key in ("name", "images", "labels", "label_suffix", "files"):
        value = entry.get(key, "x.y")
        if not isinstance(value, str) or not value.strip():
            hint = ", or leave the key out" if key in OPTIONAL else ""
            raise ValueError(
                f"{where}: {key} is {shown(value)}, expected text (in quotes if yaml takes it for something else){hint}"
            )
    suffix = entry.get("label_suffix", ".png")
    if not is_label_suffix(suffix):
        raise ValueError(
            f"{where}: label_suffix is {suffix!r}, expected what follows the image's name in the label's, with the "
            "type of the file, such as .png or _mask.png (but no JPEG, which changes the values)"
        )


def _values(where: str, what: str, values: Any) -> list[int]:
    """A label value, or a list of them, as a list."""
    result = list(values) if isinstance(values, (list, tuple)) else [values]
    for i, value in enumerate(result):
        if not is_id(value):
            raise ValueError(f"{where}: {what} are {shown(values)}, expected whole numbers from 0 to {MAX_ID}")
        if value in result[:i]:
            raise ValueError(f"{where}: {what} are {shown(values)}, which has {value} twice")
    return result


def _read_classes(where: str, classes: Any) -> list[Mapping]:
    """Classes as dicts, from a list or the file that holds it. Names and colours are checked with the metadata."""
    source = "classes"
    if isinstance(classes, str):
        path = datasets_root() / Path(classes).expanduser()
        source = f"classes in {path}"
        try:
            classes = load_yaml(read_text(path))
        except FileNotFoundError as e:
            raise FileNotFoundError(
                f"{where}: classes is {classes!r}, but {e}: expected a list of names, or a yaml file that holds one"
            ) from e
        except (ValueError, yaml.YAMLError, RecursionError) as e:  # the last by what is nested too deeply
            reason = " ".join(str(e).split())
            raise ValueError(f"{where}: {source} cannot be read, expected a yaml file with a list: {reason}") from e
    if not isinstance(classes, (list, tuple)) or not classes:
        raise ValueError(
            f"{where}: {source} must be a list of names (in a file, one a line after a dash) or of dicts with name, "
            f"color and values, found {shown(classes)}"
        )
    result = [c if isinstance(c, Mapping) else {"name": c} for c in classes]
    for i, c in enumerate(result):
        if not {"name"} <= c.keys() <= CLASS_KEYS:
            raise ValueError(
                f"{where}: {source} must be a list of names or of dicts with name, color and values, class {i} is "
                f"{shown(classes[i])}"
            )
    for key in ("color", "values"):
        if len({key in c for c in result}) > 1:
            raise ValueError(f"{where}: either all classes have a {key} entry or none")
    return result

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

A class is a name, or ``{name: path, color: [200, 180, 140], values: [7, 8]}``. Without ``values`` label files hold
positions in the list of classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog

from .register import IMAGE_SUFFIXES, Pair, datasets_root, list_files, register_dataset

REQUIRED = {"name", "images", "classes"}
OPTIONAL = {"labels", "label_suffix", "ignore_values", "groups"}

_registered: dict[str, Mapping] = {}


def register_folders(entries: Sequence[Mapping]) -> None:
    """Register the datasets of ``DATASETS.FOLDERS``, see the top of this module. Doing it twice does no harm.

    Raises:
        ValueError: a name is taken, an entry lacks a key, has one too many, or describes its classes in a wrong way.
        FileNotFoundError: the file of its classes does not exist.
    """
    for entry in entries:
        name = entry.get("name", "without a name")
        if not REQUIRED <= entry.keys() or not entry.keys() <= REQUIRED | OPTIONAL:
            raise ValueError(
                f"DATASETS.FOLDERS, entry {name!r}: expected the keys {sorted(REQUIRED)} and maybe "
                f"{sorted(OPTIONAL)}, found {sorted(entry)}"
            )
        if _registered.get(name) == entry:
            continue
        if name in DatasetCatalog:
            raise ValueError(f"DATASETS.FOLDERS: there is another dataset named {name!r}")
        _register(name, entry)
        _registered[name] = dict(entry)


def _register(name: str, entry: Mapping) -> None:
    classes = _read_classes(name, entry["classes"])
    names = [c["name"] for c in classes]
    table = dict.fromkeys(entry.get("ignore_values", [255]), 255)
    for train_id, c in enumerate(classes):
        values = c.get("values", train_id)
        for value in values if isinstance(values, Sequence) else [values]:
            if value in table:
                raise ValueError(f"dataset {name!r}: label value {value} has two meanings")
            table[value] = train_id
    for group in entry.get("groups", {}).values():
        if unknown := set(group) - set(names):
            raise ValueError(f"dataset {name!r}: groups name the classes {sorted(unknown)}, there are {names}")
    register_dataset(
        name,
        lambda root: find(root, entry),
        stuff_classes=names,
        **({"stuff_colors": [c["color"] for c in classes]} if "color" in classes[0] else {}),
        label_encodings={"values of the config": table},
        class_groups=dict(entry.get("groups", {})),
    )


def find(root: Path, entry: Mapping) -> list[Pair]:
    """Images and labels of an entry."""
    folder = root / entry["images"]  # an absolute path stays as it is
    images = [f for f in list_files(folder, "**/*") if f.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if "labels" not in entry:
        return [(image, None) for image in images]
    suffix = entry.get("label_suffix", ".png")
    stems = (image.relative_to(folder).with_suffix("") for image in images)
    return [(image, root / entry["labels"] / f"{stem}{suffix}") for image, stem in zip(images, stems, strict=True)]


def _read_classes(name: str, classes: Sequence | str) -> list[dict]:
    """Classes as dicts, from a list or the file that holds it."""
    if isinstance(classes, str):
        classes = yaml.safe_load((datasets_root() / classes).read_text())
    result = [{"name": c} if isinstance(c, str) else c for c in classes]
    if not result or not all(
        isinstance(c, Mapping) and {"name"} <= c.keys() <= {"name", "color", "values"} for c in result
    ):
        raise ValueError(
            f"dataset {name!r}: classes must be a list of names or of dicts with name, color and values, "
            f"found {classes!r}"
        )
    for key in ("color", "values"):
        if len({key in c for c in result}) > 1:
            raise ValueError(f"dataset {name!r}: either all classes have a {key} entry or none")
    return result

"""The classes that a network tells apart: names, colours and ids, as predictions need them."""

import colorsys
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from .datasets.folders import describe_folders
from .metadata import MAX_ID, check_metadata, get_ignore_label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """Classes by train id, which is their position.

    Attributes:
        names: K names.
        colors: K colours, (red, green, blue) from 0 to 255.
        ids: K values by which the dataset's own label files, or its benchmark, know them.
        ignore_label: the train id of pixels that do not count.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]
    ignore_label: int = 255

    def __post_init__(self):
        if not len(self.names) == len(self.colors) == len(self.ids) > 0:
            raise ValueError(
                f"there are {len(self.names)} names, {len(self.colors)} colors and {len(self.ids)} ids of classes: "
                "expected one of each for every class"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Classes({', '.join(self.names)})"

    @property
    def palette(self) -> np.ndarray:
        """The colours as an array, (K, 3) uint8, RGB."""
        return np.array(self.colors, dtype=np.uint8)

    @classmethod
    def of_dataset(cls, metadata: Metadata) -> "Classes":
        """The classes of a dataset.

        Raises:
            ValueError: its metadata is invalid, see :func:`~.metadata.check_metadata`.
        """
        check_metadata(metadata)
        count = len(metadata.stuff_classes)
        return cls(
            tuple(metadata.stuff_classes),
            _triples(class_colors(metadata)),
            tuple(map(int, metadata.get("submission_ids") or _file_values(metadata, count))),
            get_ignore_label(metadata),
        )

    @classmethod
    def numbered(cls, count: int, ignore_label: int = 255) -> "Classes":
        """Numbered classes, where only their number is known."""
        names = tuple(f"class {i}" for i in range(count))
        return cls(names, _triples(distinct_colors(count)), tuple(range(count)), ignore_label)

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "Classes":
        """The classes of the datasets that a config names; numbered ones, with a warning, where they are not known."""
        count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        names = list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
        problem = f"{' and '.join(names) or 'no dataset'}: not registered here, nor in DATASETS.FOLDERS"
        try:
            described = describe_folders([x for x in cfg.DATASETS.FOLDERS if x.get("name") in names])
            for name in names:
                if name in described or name in DatasetCatalog:
                    classes = cls.of_dataset(described.get(name) or MetadataCatalog.get(name))
                    if len(classes) == count:
                        return classes
                    problem = f"{name} has {len(classes)} classes, the network {count}"
        except (AttributeError, OSError, ValueError) as error:
            problem = str(error)
        logger.warning("The names and colours of the %d classes are not known (%s): they are numbered", count, problem)
        return cls.numbered(count, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    def to_json(self) -> str:
        """All of it as text, for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Classes":
        """The classes that :meth:`to_json` wrote.

        Raises:
            ValueError: it has not written this.
        """
        try:
            found = json.loads(text)
            return cls(
                tuple(map(str, found["names"])),
                _triples(found["colors"]),
                tuple(map(int, found["ids"])),
                int(found["ignore_label"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the classes {text[:80]!r} cannot be read ({error})") from error


def class_colors(metadata: Metadata) -> np.ndarray:
    """Colours of a dataset's classes, (K, 3) uint8 RGB: its ``stuff_colors``, or distinct ones."""
    colors = metadata.get("stuff_colors")
    if colors is None:
        return distinct_colors(len(metadata.stuff_classes))
    return np.array(colors, dtype=np.uint8)


def distinct_colors(count: int) -> np.ndarray:
    """Colours for classes whose dataset gives none, (count, 3) uint8 RGB, spread over hue and lightness."""
    colors = [
        colorsys.hsv_to_rgb((i * 0.61803399) % 1, 0.55 + 0.4 * (i % 3) / 2, 0.95 - 0.35 * (i % 2)) for i in range(count)
    ]
    return (255 * np.array(colors).reshape(count, 3)).round().astype(np.uint8)


def _file_values(metadata: Metadata, count: int) -> list[int]:
    """For each class the first value that means it in label files, in the encoding that is found or most likely."""
    encodings = metadata.get("label_encodings")
    if not encodings:
        return list(range(count))
    table = encodings[metadata.get("label_encoding", next(iter(encodings)))]
    values: dict[int, int] = {}
    for value, train_id in table.items():
        values.setdefault(train_id, value)
    # A class that files cannot hold gets a value that means nothing in them.
    free = (value for value in range(MAX_ID + 1) if value not in table)
    return [values[train_id] if train_id in values else next(free) for train_id in range(count)]


def _triples(colors: Iterable[Iterable[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(r), int(g), int(b)) for r, g, b in colors)

"""The embedded dataset, 12 classes: ``shapes_{train,val}``, drawn on first use.

It is small enough for a laptop; :mod:`.shapes_drawing` says what the pictures show. The files lie in
``$DETECTRON2_DATASETS/shapes`` (``datasets/shapes`` by default): ``images/{split}`` holds RGB PNG files,
``labels/{split}`` the train ids, 255 for the ignored frame of the picture.
"""

import json
import logging
import os
import re
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import file_lock
from PIL import Image

from ...output import write_whole
from .register import datasets_root
from .shapes_drawing import CLASSES, COLORS, IGNORE, RARE, SIZE, STUFF, THINGS, VERSION, draw

NUM_IMAGES = {"train": 800, "val": 200}
MANIFEST = "manifest.json"
OWN_NAME = re.compile(r"(images|labels)/(train|val)/\d+\.png")

logger = logging.getLogger(__name__)


def generate(root: Path) -> None:
    """Draw the dataset into ``root``; nothing there is touched that this function has not written.

    ``manifest.json`` lists what it has written. It is complete only when all files are, so that half of a dataset is
    never taken for a whole one. Several processes may call at once: one draws, the others wait for it.

    Raises:
        FileExistsError: ``root`` is there, and is not this dataset by its manifest.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(root)):
        manifest = _read_manifest(root)
        if _is_complete(root, manifest):
            return
        if manifest is not None:
            logger.warning("%s is half-written or of an older version: drawing it again", root)
        elif os.path.lexists(root) and not (root.is_dir() and not any(root.iterdir())):
            raise FileExistsError(
                f"{root.absolute()} is where the embedded dataset belongs, but its files are not of this dataset (no "
                f"{MANIFEST} says so) and are left alone: move them, or set DETECTRON2_DATASETS to another folder"
            )
        logger.info("Drawing the shapes dataset into %s", root)
        root.mkdir(exist_ok=True)
        earlier = (manifest or {}).get("bytes", {})
        _write_manifest(root, {"version": 0, "bytes": earlier})
        sizes = {}
        for split, count in NUM_IMAGES.items():
            for index in range(count):
                for kind, array in zip(("images", "labels"), draw(split, index), strict=True):
                    name = f"{kind}/{split}/{index:04d}.png"
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(root / name, compress_level=1)
                    sizes[name] = (root / name).stat().st_size
        _write_manifest(root, {"version": VERSION, "bytes": sizes})
        for name in earlier.keys() - sizes.keys():
            (root / name).unlink(missing_ok=True)


def _read_manifest(root: Path) -> dict | None:
    """The manifest of a folder that is this dataset, complete or not; None for any other folder."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        is_ours = manifest.keys() == {"version", "bytes"} and all(map(OWN_NAME.fullmatch, manifest["bytes"]))
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return manifest if is_ours else None


def _write_manifest(root: Path, manifest: dict) -> None:
    with write_whole(root / MANIFEST, "w") as file:
        json.dump(manifest, file)


def _is_complete(root: Path, manifest: dict | None) -> bool:
    """Whether every file of this version is there with all its bytes."""
    try:
        return (
            manifest is not None
            and manifest["version"] == VERSION
            and all((root / name).stat().st_size == size for name, size in manifest["bytes"].items())
        )
    except OSError:
        return False


def load_shapes(split: str) -> list[dict]:
    """Dataset dicts of a split; draws the dataset if it is missing or damaged, see :func:`generate`."""
    root = datasets_root() / "shapes"
    if not _is_complete(root, _read_manifest(root)):
        generate(root)
    return [
        {
            "dataset_name": f"shapes_{split}",
            "file_name": str(root / "images" / split / f"{index:04d}.png"),
            "sem_seg_file_name": str(root / "labels" / split / f"{index:04d}.png"),
            "image_id": f"{split}_{index:04d}",
            "height": SIZE,
            "width": SIZE,
        }
        for index in range(NUM_IMAGES[split])
    ]


for _split in NUM_IMAGES:
    DatasetCatalog.register(f"shapes_{_split}", lambda split=_split: load_shapes(split))
    MetadataCatalog.get(f"shapes_{_split}").set(
        stuff_classes=list(CLASSES),
        stuff_colors=[list(color) for color in COLORS],
        ignore_label=IGNORE,
        evaluator_type="sem_seg",
        class_groups={"stuff": list(STUFF), "things": list(THINGS), "rare": list(RARE)},
    )

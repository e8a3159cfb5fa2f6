"""The embedded dataset, 12 classes: ``shapes_{train,val}``, drawn on first use.

It puts the questions of the paper on a laptop: see :mod:`.shapes_drawing` for what the pictures show. The files lie in
``$DETECTRON2_DATASETS/shapes`` (``datasets/shapes`` by default): ``images/{split}`` holds RGB PNG files,
``labels/{split}`` the train ids, 255 for the ignored frame of the picture.
"""

import json
import logging
import shutil
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import file_lock
from PIL import Image

from .register import datasets_root
from .shapes_drawing import CLASSES, COLORS, IGNORE, RARE, SIZE, STUFF, THINGS, VERSION, draw

NUM_IMAGES = {"train": 800, "val": 200}

logger = logging.getLogger(__name__)


def generate(root: Path) -> None:
    """Write the dataset to ``root``, a folder that another process never sees half-written.

    Several processes may call it at once: one draws, the others wait for it.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(root)):
        if _is_complete(root):
            return
        if root.exists():
            logger.warning("%s is half-written or of an older version: drawing it again", root)
            shutil.rmtree(root)
        partial = root.with_name(root.name + ".partial")
        if partial.exists():
            logger.warning("%s was left by an interrupted run: starting again", partial)
            shutil.rmtree(partial)
        logger.info("Drawing the shapes dataset into %s", root)
        sizes = {}
        for split, count in NUM_IMAGES.items():
            for kind in ("images", "labels"):
                (partial / kind / split).mkdir(parents=True)
            for index in range(count):
                for kind, array in zip(("images", "labels"), draw(split, index), strict=True):
                    path = partial / kind / split / f"{index:04d}.png"
                    Image.fromarray(array).save(path, compress_level=1)
                    sizes[f"{kind}/{split}/{index:04d}.png"] = path.stat().st_size
        (partial / "manifest.json").write_text(json.dumps({"version": VERSION, "bytes": sizes}))
        partial.rename(root)


def _is_complete(root: Path) -> bool:
    """Whether every file of this version is there with all its bytes."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
        return manifest["version"] == VERSION and all(
            (root / name).stat().st_size == size for name, size in manifest["bytes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def load_shapes(split: str) -> list[dict]:
    """Dataset dicts of a split; draws the dataset if it is missing or damaged."""
    root = datasets_root() / "shapes"
    if not _is_complete(root):
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

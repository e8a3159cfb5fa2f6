"""PASCAL-Context, 59 classes: ``pascal_context_59_{train,val}``.

It is found in each of the layouts that are in use, see :data:`LAYOUTS`, and with labels in each encoding: PNG
files of 59 classes with 0 ignored (1..59) or shifted (0..58, 255 ignored), and the 459 classes of the original
release, as PNG or as its MATLAB files.
"""

from collections.abc import Callable
from pathlib import Path

from ..files import read_text
from .register import Pair, list_files, register_dataset

# Raw id among the 459, name and colour; the train id is the position.
CLASSES = (
    (2, "aeroplane", (180, 120, 120)),
    (9, "bag", (6, 230, 230)),
    (18, "bed", (80, 50, 50)),
    (19, "bedclothes", (4, 200, 3)),
    (22, "bench", (120, 120, 80)),
    (23, "bicycle", (140, 140, 140)),
    (25, "bird", (204, 5, 255)),
    (31, "boat", (230, 230, 230)),
    (33, "book", (4, 250, 7)),
    (34, "bottle", (224, 5, 255)),
    (44, "building", (235, 255, 7)),
    (45, "bus", (150, 5, 61)),
    (46, "cabinet", (120, 120, 70)),
    (59, "car", (8, 255, 51)),
    (65, "cat", (255, 6, 82)),
    (68, "ceiling", (143, 255, 140)),
    (72, "chair", (204, 255, 4)),
    (80, "cloth", (255, 51, 7)),
    (85, "computer", (204, 70, 3)),
    (98, "cow", (0, 102, 200)),
    (104, "cup", (61, 230, 250)),
    (105, "curtain", (255, 6, 51)),
    (113, "dog", (11, 102, 255)),
    (115, "door", (255, 7, 71)),
    (144, "fence", (255, 9, 224)),
    (158, "floor", (9, 7, 230)),
    (159, "flower", (220, 220, 220)),
    (162, "food", (255, 9, 92)),
    (187, "grass", (112, 9, 255)),
    (189, "ground", (8, 255, 214)),
    (207, "horse", (7, 255, 224)),
    (220, "keyboard", (255, 184, 6)),
    (232, "light", (10, 255, 71)),
    (258, "motorbike", (255, 41, 10)),
    (259, "mountain", (7, 255, 255)),
    (260, "mouse", (224, 255, 8)),
    (284, "person", (102, 8, 255)),
    (295, "plate", (255, 61, 6)),
    (296, "platform", (255, 194, 7)),
    (308, "pottedplant", (255, 122, 8)),
    (324, "road", (0, 255, 20)),
    (326, "rock", (255, 8, 41)),
    (347, "sheep", (255, 5, 153)),
    (349, "shelves", (6, 51, 255)),
    (354, "sidewalk", (235, 12, 255)),
    (355, "sign", (160, 150, 20)),
    (360, "sky", (0, 163, 255)),
    (366, "snow", (140, 140, 140)),
    (368, "sofa", (250, 10, 15)),
    (397, "table", (20, 255, 0)),
    (415, "track", (31, 255, 0)),
    (416, "train", (255, 31, 0)),
    (420, "tree", (255, 224, 0)),
    (424, "truck", (153, 255, 0)),
    (427, "tvmonitor", (0, 0, 255)),
    (440, "wall", (255, 71, 0)),
    (445, "water", (0, 235, 255)),
    (454, "window", (0, 173, 255)),
    (458, "wood", (31, 0, 255)),
)
LABEL_ENCODINGS = {
    "1..59, 0 ignored": {0: 255, **{train + 1: train for train in range(len(CLASSES))}},
    "0..58, 255 ignored": {**{train: train for train in range(len(CLASSES))}, 255: 255},
    "459 classes": {
        **dict.fromkeys(range(460), 255),
        **{raw: train for train, (raw, *_) in enumerate(CLASSES)},
    },
}
# The original release has the first count, splits made from trainval_merged.json have the second.
NUM_IMAGES = {"train": [4998, 4996], "val": [5105, 5104]}


def _voc(root: Path, split: str) -> list[Pair]:
    base = root / "VOCdevkit" / "VOC2010"
    stems = read_text(base / "ImageSets" / "SegmentationContext" / f"{split}.txt").split()
    if (base / "SegmentationClassContext").is_dir():
        labels, suffix = base / "SegmentationClassContext", "png"
    else:
        labels, suffix = base / "trainval", "mat"
    return [(base / "JPEGImages" / f"{s}.jpg", labels / f"{s}.{suffix}") for s in stems]


def _split_folders(root: Path, split: str) -> list[Pair]:
    base = root / "pascal_context" / split
    images = list_files(base / "image", "*.jpg")
    return [(image, base / "label" / f"{image.stem}.png") for image in images]


def _detectron2(root: Path, split: str) -> list[Pair]:
    base, folder = root / "pascal_ctx_d2", {"train": "training", "val": "validation"}[split]
    images = list_files(base / "images" / folder, "*.jpg")
    return [(image, base / "annotations_ctx59" / folder / f"{image.stem}.png") for image in images]


# Where each layout is, and how its pairs are found.
LAYOUTS: dict[str, Callable[[Path, str], list[Pair]]] = {
    "VOCdevkit/VOC2010/ImageSets/SegmentationContext": _voc,
    "pascal_context": _split_folders,
    "pascal_ctx_d2": _detectron2,
}


def find(root: Path, split: str) -> list[Pair]:
    """Images and labels of a split, in the first layout that is there."""
    for folder, layout in LAYOUTS.items():
        if (root / folder).is_dir():
            return layout(root, split)
    raise FileNotFoundError(f"there is no folder {' or '.join(LAYOUTS)} in {root}")


for _split in NUM_IMAGES:
    register_dataset(
        f"pascal_context_59_{_split}",
        lambda root, split=_split: find(root, split),
        stuff_classes=[name for _, name, _ in CLASSES],
        stuff_colors=[list(color) for *_, color in CLASSES],
        label_encodings=LABEL_ENCODINGS,
        submission_ids=list(range(1, len(CLASSES) + 1)),
        num_images=NUM_IMAGES[_split],
    )

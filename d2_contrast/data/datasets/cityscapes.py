"""Cityscapes, 19 classes: ``cityscapes_19_{train,val,trainval,test}``.

Files as the benchmark ships them, in ``cityscapes/leftImg8bit`` and ``cityscapes/gtFine``. Labels are read from
``*_labelIds.png``, or from ``*_labelTrainIds.png`` where a copy has only those. The labels of the test split
are not public.
"""

from pathlib import Path

from .register import Pair, list_files, register_dataset

# Raw id, name, category and colour; the train id is the position.
CLASSES = (
    (7, "road", "flat", (128, 64, 128)),
    (8, "sidewalk", "flat", (244, 35, 232)),
    (11, "building", "construction", (70, 70, 70)),
    (12, "wall", "construction", (102, 102, 156)),
    (13, "fence", "construction", (190, 153, 153)),
    (17, "pole", "object", (153, 153, 153)),
    (19, "traffic light", "object", (250, 170, 30)),
    (20, "traffic sign", "object", (220, 220, 0)),
    (21, "vegetation", "nature", (107, 142, 35)),
    (22, "terrain", "nature", (152, 251, 152)),
    (23, "sky", "sky", (70, 130, 180)),
    (24, "person", "human", (220, 20, 60)),
    (25, "rider", "human", (255, 0, 0)),
    (26, "car", "vehicle", (0, 0, 142)),
    (27, "truck", "vehicle", (0, 0, 70)),
    (28, "bus", "vehicle", (0, 60, 100)),
    (31, "train", "vehicle", (0, 80, 100)),
    (32, "motorcycle", "vehicle", (0, 0, 230)),
    (33, "bicycle", "vehicle", (119, 11, 32)),
)
IGNORED_RAW_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
# Weights of the cross entropy that HRNet introduced, by train id.
CLASS_WEIGHTS = (
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip
LABEL_ENCODINGS = {
    "labelIds": {
        **dict.fromkeys(IGNORED_RAW_IDS, 255),
        **{raw: train for train, (raw, *_) in enumerate(CLASSES)},
    },
    "labelTrainIds": {**{train: train for train in range(len(CLASSES))}, 255: 255},
}
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
NUM_IMAGES = {"train": 2975, "val": 500, "trainval": 3475, "test": 1525}


def find(root: Path, folders: tuple[str, ...]) -> list[Pair]:
    """Images and labels of some of the folders train, val and test."""
    images = []
    for folder in folders:
        images += list_files(root / "cityscapes" / "leftImg8bit" / folder, "*/*_leftImg8bit.png")
    if folders == ("test",):
        return [(image, None) for image in images]

    def label(image: Path, encoding: str) -> Path:
        folder = root / "cityscapes" / "gtFine" / image.parent.parent.name / image.parent.name
        return folder / image.name.replace("leftImg8bit", f"gtFine_{encoding}")

    found = [e for e in LABEL_ENCODINGS if any(label(image, e).exists() for image in images)]
    # Where there are none at all, the missing files are named when they are read.
    encoding = (found or list(LABEL_ENCODINGS))[0]
    return [(image, label(image, encoding)) for image in images]


for _split, _folders in SPLITS.items():
    register_dataset(
        f"cityscapes_19_{_split}",
        lambda root, folders=_folders: find(root, folders),
        stuff_classes=[name for _, name, _, _ in CLASSES],
        stuff_colors=[list(color) for *_, color in CLASSES],
        class_groups={
            category: [name for _, name, c, _ in CLASSES if c == category]
            for category in dict.fromkeys(c for _, _, c, _ in CLASSES)
        },
        class_weights=list(CLASS_WEIGHTS),
        label_encodings=LABEL_ENCODINGS,
        evaluator_type="cityscapes_sem_seg",
        submission_ids=[raw for raw, *_ in CLASSES],
        has_labels=_split != "test",
        num_images=[NUM_IMAGES[_split]],
    )

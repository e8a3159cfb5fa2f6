"""CamVid, 11 classes: ``camvid_11_{train,val,trainval,test}``, and ``camvid_11_train_quarter``, every fourth frame.

The split and the classes of Badrinarayanan et al. (SegNet, TPAMI 2017), in the layout that most people have:
``CamVid/{train,val,test}`` with the frames of a split and ``CamVid/{train,val,test}annot`` with its label maps, which
are PNG files of the same names. Frames may be of any image format.
"""

from pathlib import Path

from .register import Pair, first_existing, list_images, register_dataset

CLASSES = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
VOID = 11
# Each has at most 1.2 % of the labelled pixels of the training images.
RARE = ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")
LABEL_ENCODINGS = {
    "0..10, 11 ignored": {**{i: i for i in range(len(CLASSES))}, VOID: 255},
    "0..10, 255 ignored": {**{i: i for i in range(len(CLASSES))}, 255: 255},
}
# Folders of a split, and how many frames to advance: neighbouring frames are alike.
SPLITS = {
    "train": (("train",), 1),
    "val": (("val",), 1),
    "trainval": (("train", "val"), 1),
    "test": (("test",), 1),
    "train_quarter": (("train",), 4),
}
NUM_IMAGES = {"train": 367, "val": 101, "trainval": 468, "test": 233, "train_quarter": 92}


def find(root: Path, splits: tuple[str, ...], step: int) -> list[Pair]:
    """Every ``step``-th frame of some of the splits train, val and test, with its label map."""
    base = first_existing(root, ["CamVid", "camvid"])
    return [
        (frame, base / f"{split}annot" / f"{frame.stem}.png")
        for split in splits
        for frame in list_images(base / split, "*")[::step]
    ]


for _name, (_splits, _step) in SPLITS.items():
    register_dataset(
        f"camvid_11_{_name}",
        lambda root, splits=_splits, step=_step: find(root, splits, step),
        stuff_classes=[name for name, _ in CLASSES],
        stuff_colors=[list(color) for _, color in CLASSES],
        class_groups={"rare": list(RARE)},
        label_encodings=LABEL_ENCODINGS,
        num_images=[NUM_IMAGES[_name]],
    )

"""CaDIS, cataract surgery, in its three tasks: ``cadis_task{1,2,3}_{train,val,test,valtest}``.

Files as the dataset ships them, ``cadis/segmentation/Video01/{Images,Labels}`` (or without ``segmentation``),
divided into splits by video. ``valtest`` merges val and test, which is what the authors of the paper evaluate on by
default. Each name with ``_clean`` at its end leaves out the frames that the authors blacklisted; that needs their
list, ``data.csv`` of their repository, as ``cadis/data.csv``.
"""

import csv
from pathlib import Path

from ..files import read_text
from .register import Pair, first_existing, list_files, register_dataset

# Name and colour; the raw id is the position.
RAW_CLASSES = (
    ("Pupil", (0, 137, 255)),
    ("Surgical Tape", (255, 165, 0)),
    ("Hand", (255, 156, 201)),
    ("Eye Retractors", (99, 0, 255)),
    ("Iris", (255, 0, 0)),
    ("Skin", (255, 0, 165)),
    ("Cornea", (255, 255, 255)),
    ("Hydrodissection Cannula", (141, 141, 141)),
    ("Viscoelastic Cannula", (255, 218, 0)),
    ("Capsulorhexis Cystotome", (173, 156, 255)),
    ("Rycroft Cannula", (73, 73, 73)),
    ("Bonn Forceps", (250, 213, 255)),
    ("Primary Knife", (255, 156, 156)),
    ("Phacoemulsifier Handpiece", (99, 255, 0)),
    ("Lens Injector", (157, 225, 255)),
    ("I/A Handpiece", (255, 89, 124)),
    ("Secondary Knife", (173, 255, 156)),
    ("Micromanipulator", (255, 60, 0)),
    ("I/A Handpiece Handle", (40, 0, 255)),
    ("Capsulorhexis Forceps", (170, 124, 0)),
    ("Rycroft Cannula Handle", (188, 255, 0)),
    ("Phacoemulsifier Handpiece Handle", (0, 207, 255)),
    ("Capsulorhexis Cystotome Handle", (0, 255, 207)),
    ("Secondary Knife Handle", (188, 0, 255)),
    ("Lens Injector Handle", (243, 0, 255)),
    ("Suture Needle", (0, 203, 108)),
    ("Needle Holder", (252, 255, 0)),
    ("Charleux Cannula", (93, 182, 177)),
    ("Primary Knife Handle", (0, 81, 203)),
    ("Vitrectomy Handpiece", (211, 183, 120)),
    ("Mendez Ring", (231, 203, 0)),
    ("Marker", (0, 124, 255)),
    ("Hydrodissection Cannula Handle", (10, 91, 44)),
    ("Troutman Forceps", (2, 0, 60)),
    ("Cotton", (0, 144, 2)),
    ("Iris Hooks", (133, 59, 59)),
)
# Name and raw ids of each class of a task; the train id is the position. Raw ids that are not there are ignored.
TASKS = {
    1: (
        ("Pupil", (0,)),
        ("Surgical Tape", (1,)),
        ("Hand", (2,)),
        ("Eye Retractors", (3,)),
        ("Iris", (4,)),
        ("Skin", (5,)),
        ("Cornea", (6,)),
        ("Instrument", tuple(range(7, 36))),
    ),
    2: (
        ("Pupil", (0,)),
        ("Surgical Tape", (1,)),
        ("Hand", (2,)),
        ("Eye Retractors", (3,)),
        ("Iris", (4,)),
        ("Skin", (5,)),
        ("Cornea", (6,)),
        ("Cannula", (7, 8, 10, 20, 27, 32)),
        ("Cap. Cystotome", (9, 22)),
        ("Tissue Forceps", (11, 33)),
        ("Primary Knife", (12, 28)),
        ("Ph. Handpiece", (13, 21)),
        ("Lens Injector", (14, 24)),
        ("I/A Handpiece", (15, 18)),
        ("Secondary Knife", (16, 23)),
        ("Micromanipulator", (17,)),
        ("Cap. Forceps", (19,)),
    ),
    3: (
        ("Pupil", (0,)),
        ("Surgical Tape", (1,)),
        ("Hand", (2,)),
        ("Eye Retractors", (3,)),
        ("Iris", (4,)),
        ("Skin", (5,)),
        ("Cornea", (6,)),
        ("Hydro. Cannula", (7,)),
        ("Visc. Cannula", (8,)),
        ("Cap. Cystotome", (9,)),
        ("Rycroft Cannula", (10,)),
        ("Bonn Forceps", (11,)),
        ("Primary Knife", (12,)),
        ("Ph. Handpiece", (13,)),
        ("Lens Injector", (14,)),
        ("I/A Handpiece", (15,)),
        ("Secondary Knife", (16,)),
        ("Micromanipulator", (17,)),
        ("I/A Handpiece Handle", (18,)),
        ("Cap. Forceps", (19,)),
        ("R. Cannula Handle", (20,)),
        ("Ph. Handpiece Handle", (21,)),
        ("Cap. Cystotome Handle", (22,)),
        ("Sec. Knife Handle", (23,)),
        ("Lens Injector Handle", (24,)),
    ),
}
ANATOMIES = (0, 4, 5, 6)  # train ids, in every task
TOOLS_START = 7  # train ids from here on are instruments
# Train ids that the authors count as rare.
RARE = {
    1: (2,),
    2: (9, 10, 12, 14, 16),
    3: (11, 12, 14, 16, 18, 19, 20, 21, 22, 23, 24),
}
VIDEOS = {
    "train": (1, 3, 4, 6, 8, 9, 10, 11, 13, 14, 15, 17, 18, 19, 20, 21, 23, 24, 25),
    "val": (5, 7, 16),
    "test": (2, 12, 22),
    "valtest": (2, 5, 7, 12, 16, 22),
}
NUM_IMAGES = {"train": 3550, "val": 534, "test": 586, "valtest": 1120}
NUM_BLACKLISTED = {"train": 60, "val": 23, "test": 96, "valtest": 119}


def find(root: Path, split: str, clean: bool) -> list[Pair]:
    """Frames and labels of a split, without blacklisted frames if ``clean``."""
    base = first_existing(root, ["cadis"])
    videos = first_existing(base, ["segmentation", "."])
    images = []
    for video in VIDEOS[split]:
        images += list_files(videos / f"Video{video:02d}" / "Images", "*.png")
    if clean:
        blacklist = _read_blacklist(base / "data.csv")
        images = [image for image in images if image.name not in blacklist]
    return [(image, image.parent.with_name("Labels") / image.name) for image in images]


def _read_blacklist(path: Path) -> set[str]:
    """Names of the frames to leave out: those with 1. A 2 marks small errors, the authors keep such frames."""
    if not path.exists():
        raise FileNotFoundError(f"there is no list of blacklisted frames, {path}")
    rows = csv.DictReader(read_text(path).splitlines())
    if not {"img_path", "blacklisted"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}: expected the columns img_path and blacklisted, found {rows.fieldnames}")
    blacklist = set()
    for row in rows:
        try:
            if float(row["blacklisted"]) == 1:
                blacklist.add(Path(row["img_path"]).name)
        except (TypeError, ValueError) as e:
            raise ValueError(
                f"{path}, line {rows.line_num}: blacklisted is {row['blacklisted']!r}, expected a number"
            ) from e
    return blacklist


for _task, _classes in TASKS.items():
    _names = [name for name, _ in _classes]
    for _split in VIDEOS:
        for _clean in (False, True):
            register_dataset(
                f"cadis_task{_task}_{_split}" + "_clean" * _clean,
                lambda root, split=_split, clean=_clean: find(root, split, clean),
                stuff_classes=_names,
                stuff_colors=[list(RAW_CLASSES[raw_ids[0]][1]) for _, raw_ids in _classes],
                class_groups={
                    "anatomies": [_names[i] for i in ANATOMIES],
                    "tools": _names[TOOLS_START:],
                    "rare": [_names[i] for i in RARE[_task]],
                },
                label_encodings={
                    "raw ids": {
                        **dict.fromkeys(range(len(RAW_CLASSES)), 255),
                        **{raw: i for i, (_, raw_ids) in enumerate(_classes) for raw in raw_ids},
                    }
                },
                num_images=[NUM_IMAGES[_split] - _clean * NUM_BLACKLISTED[_split]],
            )

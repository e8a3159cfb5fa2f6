"""Miniature copies of the benchmarks in their real layouts, with their raw label ids, ignored ones among them.

Each function writes below ``root`` (what ``DETECTRON2_DATASETS`` is set to) and returns the train ids that the label
maps mean, by path of the label file. Images show their labels in noise, so that a network can learn something.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

IGNORE = 255


def _raw_map(rng: np.random.RandomState, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """A label map of 4 x 4 rectangles."""
    blocks = rng.choice(values, (4, 4))
    rows, cols = (np.arange(n) * 4 // n for n in size)
    return blocks[np.ix_(rows, cols)]


def _write_pair(rng: np.random.RandomState, image: Path, label: Path, raw: np.ndarray, scale: int = 6) -> None:
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    gray = raw.astype(int) * scale % 256
    noisy = gray[..., None] + rng.randint(-10, 11, (*raw.shape, 3))
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(image)
    if label.suffix == ".mat":
        savemat(label, {"LabelMap": raw.astype(np.uint16)})
    else:
        Image.fromarray(raw.astype(np.uint16 if raw.max() > 255 else np.uint8)).save(label)


def _apply(table: dict[int, int], raw: np.ndarray) -> np.ndarray:
    return np.vectorize(table.__getitem__)(raw).astype(np.uint8)


# Raw id -> train id of some Cityscapes labels; 4 static, 9 parking, 29 caravan are ignored.
CITYSCAPES = {7: 0, 8: 1, 11: 2, 21: 8, 23: 10, 24: 11, 26: 13, 33: 18, 4: IGNORE, 9: IGNORE, 29: IGNORE}


def cityscapes(
    root: Path, size=(64, 128), train: int = 4, val: int = 2, test: int = 1, encoding: str = "labelIds"
) -> dict[Path, np.ndarray]:
    """``encoding``: "labelIds", "labelTrainIds" or "both". Instance ids and polygons are there as well."""
    rng = np.random.RandomState(0)
    truth = {}
    cities = {"train": ["aachen", "ulm"], "val": ["frankfurt"], "test": ["berlin"]}
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            city = cities[split][i % len(cities[split])]
            stem = f"{city}_{i:06d}_000019"
            base = root / "cityscapes"
            image = base / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            label_folder = base / "gtFine" / split / city
            # The public labels of the test split are blank.
            raw = _raw_map(rng, size, list(CITYSCAPES)) if split != "test" else np.full(size, 4)
            meant = _apply(CITYSCAPES, raw)
            _write_pair(rng, image, label_folder / f"{stem}_gtFine_labelIds.png", raw)
            # Instances of person, car, bicycle and caravan: id * 1000 + number; the rest keeps its id.
            rows, cols = (np.arange(n) * 4 // n for n in size)
            number = 4 * rows[:, None] + cols[None]
            instances = np.where(np.isin(raw, [24, 26, 33, 29]), raw * 1000 + number, raw)
            Image.fromarray(instances.astype(np.uint16)).save(label_folder / f"{stem}_gtFine_instanceIds.png")
            (label_folder / f"{stem}_gtFine_polygons.json").write_text(
                json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": []})
            )
            files = {"labelIds": raw, "labelTrainIds": meant}
            for name, array in files.items():
                path = label_folder / f"{stem}_gtFine_{name}.png"
                path.unlink(missing_ok=True)
                if encoding in (name, "both"):
                    Image.fromarray(array.astype(np.uint8)).save(path)
                    truth[path] = meant
    return truth


def ade20k(
    root: Path, size=(48, 64), train: int = 4, val: int = 2, shifted: bool = False, folder: str | None = None
) -> dict[Path, np.ndarray]:
    """Raw labels in ``annotations``; shifted ones in ``annotations_detectron2``, unless ``folder`` says otherwise."""
    rng = np.random.RandomState(1)
    folder = folder or ("annotations_detectron2" if shifted else "annotations")
    truth = {}
    for name, stem, count in (("training", "ADE_train", train), ("validation", "ADE_val", val)):
        for i in range(1, count + 1):
            base = root / "ADEChallengeData2016"
            raw = _raw_map(rng, size, [0, 1, 2, 3, 13, 66, 149])
            meant = np.where(raw == 0, IGNORE, raw - 1)
            label = base / folder / name / f"{stem}_{i:08d}.png"
            image = base / "images" / name / f"{stem}_{i:08d}.jpg"
            _write_pair(rng, image, label, meant if shifted else raw)
            truth[label] = meant.astype(np.uint8)
    return truth


# Raw id among the 459 -> train id; 1, 255 and 459 are not among the 59 classes.
PASCAL_459 = {2: 0, 9: 1, 284: 36, 360: 46, 458: 58, 0: IGNORE, 1: IGNORE, 255: IGNORE, 459: IGNORE}


def pascal_context(
    root: Path,
    size=(48, 64),
    train: int = 4,
    val: int = 2,
    layout: str = "voc",
    encoding: str = "59",
) -> dict[Path, np.ndarray]:
    """``layout``: "voc", "folders" or "detectron2"; ``encoding``: "59", "shifted", "459" or "mat" (voc only)."""
    rng = np.random.RandomState(2)
    truth = {}
    for split, long, count in (("train", "training", train), ("val", "validation", val)):
        stems = [f"2008_{i + 1000 * len(long):06d}" for i in range(count)]
        for stem in stems:
            if encoding in ("459", "mat"):
                raw = _raw_map(rng, size, list(PASCAL_459))
                meant = _apply(PASCAL_459, raw)
            else:
                raw = _raw_map(rng, size, [0, 1, 2, 37, 47, 58])
                meant = np.where(raw == 0, IGNORE, raw - 1)
                raw = meant if encoding == "shifted" else raw
            if layout == "voc":
                base = root / "VOCdevkit" / "VOC2010"
                image = base / "JPEGImages" / f"{stem}.jpg"
                label = base / "SegmentationClassContext" / f"{stem}.png"
                if encoding == "mat":
                    label = base / "trainval" / f"{stem}.mat"
            elif layout == "folders":
                image = root / "pascal_context" / split / "image" / f"{stem}.jpg"
                label = root / "pascal_context" / split / "label" / f"{stem}.png"
            else:
                image = root / "pascal_ctx_d2" / "images" / long / f"{stem}.jpg"
                label = root / "pascal_ctx_d2" / "annotations_ctx59" / long / f"{stem}.png"
            _write_pair(rng, image, label, raw, scale=1)
            truth[label] = meant.astype(np.uint8)
        if layout == "voc":
            lists = root / "VOCdevkit" / "VOC2010" / "ImageSets" / "SegmentationContext"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return truth


def camvid(
    root: Path, size=(36, 48), train: int = 4, val: int = 2, test: int = 3, suffix: str = ".png", void: int = 11
) -> dict[Path, np.ndarray]:
    """In the layout of SegNet's copy, with frames of any suffix and the value that void pixels have."""
    rng = np.random.RandomState(4)
    truth = {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            base, stem = root / "CamVid", f"0001TP_{split}{i:04d}"
            label = base / f"{split}annot" / f"{stem}.png"
            raw = _raw_map(rng, size, [0, 2, 3, 8, 10, void])
            _write_pair(rng, base / split / f"{stem}{suffix}", label, raw, scale=1 if void == 255 else 6)
            truth[label] = np.where(raw == void, IGNORE, raw).astype(np.uint8)
        for folder in (split, f"{split}annot"):
            (root / "CamVid" / folder / "Thumbs.db").write_bytes(b"left by a file manager")
    return truth


CADIS_VIDEOS = {"train": 19, "val": 3, "test": 3}


def cadis(
    root: Path, size=(54, 96), per_video: int = 1, subfolder: str = "segmentation", blacklist: bool = False
) -> dict[Path, np.ndarray]:
    """All 25 videos; the values returned are raw ids 0..35. With ``blacklist``, data.csv marks videos 2 and 3."""
    rng = np.random.RandomState(3)
    raw_of, rows = {}, ["img_path,blacklisted"]
    for video in range(1, 26):
        for i in range(per_video):
            name = f"Video{video}_frame{90 + 10 * i:06d}.png"
            base = root / "cadis" / subfolder / f"Video{video:02d}"
            values = [0, 4, 5, 6, 7, 9, 12 + video % 3, 28, 35]  # 28 and 35: rare, ignored in task 3
            raw = _raw_map(rng, size, values)
            _write_pair(rng, base / "Images" / name, base / "Labels" / name, raw)
            raw_of[base / "Labels" / name] = raw
            rows.append(f"Video{video:02d}/Images/{name},{ {2: 1, 3: 1, 5: 2}.get(video, 0) }")
    if blacklist:
        (root / "cadis" / "data.csv").write_text("\n".join(rows) + "\n")
    return raw_of

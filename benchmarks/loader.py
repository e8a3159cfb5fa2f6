"""Speed of the training mapper on images of Cityscapes' size, beside Detectron2's DatasetMapper.

python -m benchmarks.loader

Both read the same PNG files and do the recipe of Cityscapes, one process and one thread each, in turns: scale 0.5-2, a
crop of 512 x 1024 in which no class takes more than 75 %, flip, brightness, contrast and saturation. Ours also changes
the aspect ratio and the hue, as the recipe says, and remaps raw label ids; Detectron2's reads train ids.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from benchmarks.common import machine, markdown
from d2_contrast.config import default_config
from d2_contrast.data import SemSegMapper, mapper
from d2_contrast.data.datasets.cityscapes import LABEL_ENCODINGS

SIZE = (1024, 2048)
CROP = (512, 1024)


def write_files(folder: Path, count: int) -> tuple[list[dict], list[dict]]:
    """Street-like pictures: smooth regions with fine grain, 2 to 3 MB each as Cityscapes' own.

    Returns:
        Dataset dicts with raw labels, and with train ids.
    """
    rng = np.random.RandomState(0)
    raw_ids = np.array(list(LABEL_ENCODINGS["labelIds"]), np.uint8)
    to_train = np.array([LABEL_ENCODINGS["labelIds"].get(i, 255) for i in range(256)], np.uint8)
    raw, train = [], []
    for i in range(count):
        coarse = rng.randint(20, 200, (16, 32, 3)).astype(np.uint8)
        image = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += np.rint(rng.normal(0, 1.2, image.shape)).astype(np.int16)
        label = cv2.resize(rng.choice(raw_ids, (12, 24)), SIZE[::-1], interpolation=cv2.INTER_NEAREST)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(label).save(folder / f"{i}_raw.png")
        Image.fromarray(to_train[label]).save(folder / f"{i}_train.png")
        image_file = str(folder / f"{i}.png")
        raw.append({"file_name": image_file, "sem_seg_file_name": str(folder / f"{i}_raw.png")})
        train.append({"file_name": image_file, "sem_seg_file_name": str(folder / f"{i}_train.png")})
    return raw, train


def our_mapper() -> SemSegMapper:
    cfg = default_config()
    cfg.DATASETS.TRAIN = ("cityscapes_19_train",)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    cfg.INPUT.ASPECT_RANGE = [0.9, 1.1]
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = list(CROP)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_JITTER.ENABLED = True
    MetadataCatalog.get("cityscapes_19_train").label_encoding = "labelIds"
    return SemSegMapper(cfg, is_train=True)


def detectron2_mapper() -> DatasetMapper:
    augmentations = [
        T.ResizeScale(0.5, 2.0, *SIZE),
        T.RandomCrop_CategoryAreaConstraint("absolute", CROP, 0.75, 255),
        T.RandomFlip(),
        T.RandomBrightness(2 / 3, 1.5),
        T.RandomContrast(2 / 3, 1.5),
        T.RandomSaturation(2 / 3, 1.5),
    ]
    return DatasetMapper(is_train=True, augmentations=augmentations, image_format="RGB")


def share_per_step(apply: SemSegMapper, records: list[dict]) -> dict[str, float]:
    """Mean milliseconds of each step of our mapper."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return run

    augmentations = [timed(type(a).__name__, a) for a in apply.augmentations.augs]
    with (
        mock.patch.object(mapper, "read_image", timed("read image", mapper.read_image)),
        mock.patch.object(mapper, "read_label", timed("read and remap label", mapper.read_label)),
        mock.patch.object(apply.augmentations, "augs", augmentations),
    ):
        total = timed("total", apply)
        for record in records:
            total(record)
    steps = {name: 1000 * s / len(records) for name, s in spent.items() if name != "total"}
    return {**steps, "copies and tensors": 1000 * spent["total"] / len(records) - sum(steps.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="number of different images")
    parser.add_argument("--rounds", type=int, default=5, help="times each mapper goes over them")
    args = parser.parse_args()
    print(machine())
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    np.random.seed(0)

    with tempfile.TemporaryDirectory() as folder:
        raw, train = write_files(Path(folder), args.images)
        size = np.mean([Path(r["file_name"]).stat().st_size for r in raw]) / 1e6
        print(f"{args.images} images of {SIZE[0]} x {SIZE[1]}, {size:.1f} MB each as PNG; crop {CROP[0]} x {CROP[1]}\n")
        ours = our_mapper()
        runs = {"d2_contrast SemSegMapper": (ours, raw), "Detectron2 DatasetMapper": (detectron2_mapper(), train)}
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(args.rounds):
            for name, (apply, records) in runs.items():
                start = time.perf_counter()
                for record in records:
                    apply(record)
                seconds[name].append((time.perf_counter() - start) / len(records))
        medians = {name: float(np.median(s)) for name, s in seconds.items()}
        rows = [(name, 1 / s, 1000 * s) for name, s in medians.items()]
        print(markdown(["mapper", "images/s per worker", "ms per image"], rows))
        steps = share_per_step(ours, raw * 2)
        total = sum(steps.values())
        print()
        rows = [(name, ms, f"{ms / total:.0%}") for name, ms in steps.items()]
        print(markdown(["step of SemSegMapper", "ms", "share"], rows))


if __name__ == "__main__":
    main()

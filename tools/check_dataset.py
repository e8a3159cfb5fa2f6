#!/usr/bin/env python3
"""Check a dataset on disk: are all files there and readable, and what is in the labels?

python tools/check_dataset.py cityscapes_19_train
python tools/check_dataset.py garden_train --config-file garden.yaml

Prints the classes with their share of images and pixels and writes output/check_dataset/NAME/browse.png, random samples
after the augmentation of the config. Problems are listed by file; the exit code is 1 if there are any. What may be
right but looks odd, such as a class without a pixel, is a warning.
"""

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from matplotlib.patches import Patch
from tabulate import tabulate
from tqdm import tqdm

from d2_contrast.config import load_config
from d2_contrast.data import (
    SemSegMapper,
    check_metadata,
    check_sample,
    describe_missing_classes,
    get_ignore_label,
    load_dicts,
    read_image,
    register_folders,
)
from d2_contrast.data.checks import SampleCheck
from d2_contrast.data.files import as_file_name
from d2_contrast.errors import message_of
from d2_contrast.visualize.report import class_colors
from d2_contrast.visualize.style import FONT_SIZE, figure, legend_column_width, plain, save

SAMPLES = 8  # in browse.png


def main(argv: list[str] | None = None) -> int:
    """Check the dataset named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of a registered dataset")
    parser.add_argument("--config-file", default="", help="registers its FOLDERS; its INPUT augments browse.png")
    parser.add_argument("--output", help="folder for browse.png (default: output/check_dataset/NAME)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    setup_logger(name="d2_contrast")

    try:
        cfg = load_config(args.config_file, args.opts)
        register_folders(cfg.DATASETS.FOLDERS)
        samples = load_dicts(args.name)
        metadata = MetadataCatalog.get(args.name)
        check_metadata(metadata)
    except (KeyError, OSError, ValueError) as error:
        print(message_of(error))
        return 1

    problems, warnings = [], []
    published = metadata.get("num_images")
    if published and len(samples) not in published:
        problems.append(f"{args.name} has {len(samples)} images, published: {' or '.join(map(str, published))}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(tqdm(pool.map(lambda s: check_sample(s, metadata), samples), total=len(samples), unit="image"))
    problems += [problem for check in checks for problem in check.problems]
    counted = [check for check in checks if check.classes is not None]

    print(f"{args.name}: {len(samples)} images, {sum('sem_seg_file_name' in s for s in samples)} with labels")
    if counted:
        print(class_table(counted, metadata.stuff_classes))
        classes = np.sum([check.classes for check in counted], axis=0)
        ignored = sum((Counter(check.ignored) for check in counted), Counter())
        if note := describe_missing_classes(metadata, classes, ignored.total(), ignored):
            # With a single class there is nothing to learn, unless labels that cannot be read have others.
            hopeless = np.count_nonzero(classes) < 2 and not problems
            (problems if hopeless else warnings).append(note)
    intact = [sample for sample, check in zip(samples, checks, strict=True) if not check.problems]
    if intact:
        folder = args.output or os.path.join("output", "check_dataset", as_file_name(args.name))
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "browse.png")
        save(draw_samples(cfg, args.name, intact, augmented=bool(args.config_file)), path)
        print(f"Samples: {path}")
    for warning in warnings:
        print(f"Warning: {warning}")
    print("\n".join([*problems, f"{len(problems)} problems"] if problems or warnings else ["No problems"]))
    return int(bool(problems))


def class_table(checks: Sequence[SampleCheck], names: Sequence[str]) -> str:
    """Share of images and of pixels of each class, and of ignored pixels, in checked labels."""
    counts = np.array([[*check.classes, sum(check.ignored.values())] for check in checks])
    pixels = counts.sum(axis=0) / counts.sum()
    images = (counts > 0).mean(axis=0)
    rows = [(i, name, f"{images[i]:.2%}", f"{pixels[i]:.3%}") for i, name in [*enumerate(names), (-1, "(ignored)")]]
    rows[-1] = ("", *rows[-1][1:])
    return tabulate(rows, headers=["train id", "class", "images", "pixels"], colalign=("right", "left", *["right"] * 2))


def draw_samples(cfg: CfgNode, name: str, samples: list[dict], augmented: bool):
    """Random samples as the network would see them, beside themselves with their labels laid over."""
    metadata = MetadataCatalog.get(name)
    labelled = "sem_seg_file_name" in samples[0]
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.FORMAT = "RGB"
    if not augmented:  # no config: what most recipes do
        cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
        cfg.INPUT.CROP.ENABLED = True
        cfg.INPUT.CROP.SIZE = list(read_image(samples[0]["file_name"]).shape[:2])
        cfg.INPUT.COLOR_JITTER.ENABLED = True
    mapper = SemSegMapper(cfg, is_train=labelled)
    colors, ignore_label = class_colors(metadata), get_ignore_label(metadata)
    picks = [mapper(s) for s in random.Random(0).sample(samples, min(SAMPLES, len(samples)))]
    panels = list(_panels(picks, colors, ignore_label))

    columns = 4 if labelled else 2
    rows = -(-len(panels) // columns)
    fig = figure(3 * columns, 3 * rows * panels[0].shape[0] / panels[0].shape[1] + 1)
    for i, panel in enumerate(panels):
        ax = fig.add_subplot(rows, columns, i + 1)
        ax.imshow(panel)
        ax.axis("off")
    if labelled:
        present = sorted({c for s in picks for c in s["sem_seg"].unique().tolist()} - {ignore_label})
        handles = [
            Patch(facecolor=colors[c] / 255, edgecolor="gray", label=plain(metadata.stuff_classes[c])) for c in present
        ]
        legend_columns = max(1, int(3 * columns / legend_column_width(h.get_label() for h in handles)))
        fig.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=FONT_SIZE)
    return fig


def _panels(picks: list[dict], colors: np.ndarray, ignore_label: int) -> Iterator[np.ndarray]:
    for sample in picks:
        image = sample["image"].permute(1, 2, 0).numpy()
        yield image
        if "sem_seg" in sample:
            label = sample["sem_seg"].numpy()
            known = label != ignore_label
            gray = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
            overlay = gray / 3  # ignored pixels are dark
            overlay[known] = 0.4 * gray[known] + 0.6 * colors[label[known]]
            yield overlay.astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Check a dataset on disk: are all files there and readable, and what is in the labels?

python tools/check_dataset.py cityscapes_19_train
python tools/check_dataset.py garden_train --config-file garden.yaml

Prints the classes with their share of images and pixels and writes browse.png, random samples after the augmentation
of the config. Problems are listed by file; the exit code is 1 if there are any.
"""

import argparse
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.logger import setup_logger
from matplotlib.patches import Patch
from tabulate import tabulate
from tqdm import tqdm

from d2_contrast.config import load_config
from d2_contrast.data import SemSegMapper, read_image, read_label, register_folders
from d2_contrast.visualize.report import class_colors
from d2_contrast.visualize.style import FONT_SIZE, figure, legend_column_width, save

SAMPLES = 8  # in browse.png


def main(argv: list[str] | None = None) -> int:
    """Check the dataset named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of a registered dataset")
    parser.add_argument("--config-file", default="", help="registers its FOLDERS; its INPUT augments browse.png")
    parser.add_argument("--output", default=".", help="folder for browse.png")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    setup_logger(name="d2_contrast")

    cfg = load_config(args.config_file, args.opts)
    register_folders(cfg.DATASETS.FOLDERS)
    try:
        samples = DatasetCatalog.get(args.name)
    except (KeyError, OSError, ValueError) as error:
        print(error.args[0] if isinstance(error, KeyError) else error)
        return 1
    metadata = MetadataCatalog.get(args.name)
    if metadata.get("stuff_classes") is None:
        print(f"{args.name} has no stuff_classes in its metadata: it is no dataset for semantic segmentation")
        return 1

    problems = []
    published = metadata.get("num_images")
    if published and len(samples) not in published:
        problems.append(f"{args.name} has {len(samples)} images, published: {' or '.join(map(str, published))}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(tqdm(pool.map(lambda s: check_sample(s, metadata), samples), total=len(samples), unit="image"))
    problems += [problem for found, _ in checks for problem in found]
    counts = np.array([c for _, c in checks if c is not None])

    print(f"{args.name}: {len(samples)} images, {sum('sem_seg_file_name' in s for s in samples)} with labels")
    if len(counts):
        print(class_table(counts, metadata.stuff_classes))
    intact = [sample for sample, (found, _) in zip(samples, checks, strict=True) if not found]
    if intact:
        path = os.path.join(args.output, "browse.png")
        os.makedirs(args.output, exist_ok=True)
        save(draw_samples(cfg, args.name, intact, augmented=bool(args.config_file)), path)
        print(f"Samples: {path}")
    print("\n".join(problems + [f"{len(problems)} problems"] if problems else ["No problems"]))
    return int(bool(problems))


def check_sample(sample: dict, metadata: Metadata) -> tuple[list[str], np.ndarray | None]:
    """Read an image and its label.

    Returns:
        What is wrong with them, and the pixels of each class with those of no class last, (C + 1,), or None.
    """
    problems, image, counts = [], None, None
    try:
        image = read_image(sample["file_name"])
    except OSError as error:
        problems.append(str(error))
    if "sem_seg_file_name" in sample:
        try:
            label = read_label(sample["sem_seg_file_name"], metadata)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        else:
            if image is not None and image.shape[:2] != label.shape:
                sizes = " x ".join(map(str, label.shape)), " x ".join(map(str, image.shape[:2]))
                problems.append(
                    f"{sample['sem_seg_file_name']}: the label has {sizes[0]} pixels (height x width), "
                    f"its image {sizes[1]}"
                )
            classes = np.bincount(label.ravel(), minlength=256)[: len(metadata.stuff_classes)]
            counts = np.append(classes, label.size - classes.sum())
    return problems, counts


def class_table(counts: np.ndarray, names: list[str]) -> str:
    """Share of images and of pixels of each class, from (N, C + 1) pixel counts."""
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
    colors = class_colors(metadata)
    picks = [mapper(s) for s in random.Random(0).sample(samples, min(SAMPLES, len(samples)))]
    panels = list(_panels(picks, colors))

    columns = 4 if labelled else 2
    rows = -(-len(panels) // columns)
    fig = figure(3 * columns, 3 * rows * panels[0].shape[0] / panels[0].shape[1] + 1)
    for i, panel in enumerate(panels):
        ax = fig.add_subplot(rows, columns, i + 1)
        ax.imshow(panel)
        ax.axis("off")
    if labelled:
        present = sorted({c for s in picks for c in s["sem_seg"].unique().tolist() if c < len(colors)})
        handles = [Patch(facecolor=colors[c] / 255, edgecolor="gray", label=metadata.stuff_classes[c]) for c in present]
        legend_columns = max(1, int(3 * columns / legend_column_width(h.get_label() for h in handles)))
        fig.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=FONT_SIZE)
    return fig


def _panels(picks: list[dict], colors: np.ndarray) -> Iterator[np.ndarray]:
    for sample in picks:
        image = sample["image"].permute(1, 2, 0).numpy()
        yield image
        if "sem_seg" in sample:
            label = sample["sem_seg"].numpy()
            known = label < len(colors)
            gray = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
            overlay = gray / 3  # ignored pixels are dark
            overlay[known] = 0.4 * gray[known] + 0.6 * colors[label[known]]
            yield overlay.astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())

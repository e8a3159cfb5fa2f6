"""Samples of a dataset as a network sees them."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..data import SemSegMapper, get_ignore_label, read_image
from .report import class_colors
from .style import FONT_SIZE, figure, legend_column_width, plain

SAMPLES = 8


def draw_samples(cfg: CfgNode, name: str, samples: Sequence[dict], augmented: bool) -> Figure:
    """Draw some samples of a dataset as the network would see them, beside themselves with their labels laid over.

    Args:
        cfg: says by INPUT how they are augmented.
        name: of the dataset.
        samples: its dataset dicts, at least one; of many, SAMPLES are drawn at random.
        augmented: False for the augmentation that most recipes have, instead of the config's.

    Raises:
        OSError, ValueError: a sample cannot be used, or not be augmented, also where a training would skip it.
    """
    metadata = MetadataCatalog.get(name)
    labelled = "sem_seg_file_name" in samples[0]
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.ON_ERROR = "raise"
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

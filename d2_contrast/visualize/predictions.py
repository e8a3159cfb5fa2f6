"""Images beside their labels, predictions and errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .style import FONT_SIZE, figure, legend_column_width

IGNORED_COLOR = (0, 0, 0)
CORRECT_COLOR = (232, 232, 232)
WRONG_COLOR = (214, 39, 40)


@dataclass(frozen=True)
class Sample:
    """An image with what is known about it, all of the same size.

    Attributes:
        name: its title in the figure.
        image: (H, W, 3) uint8, RGB.
        prediction: (H, W) class ids.
        label: (H, W) class ids and the ignore label, or None for an image without label.
    """

    name: str
    image: np.ndarray
    prediction: np.ndarray
    label: np.ndarray | None


def draw_predictions(
    samples: Sequence[Sample],
    class_names: Sequence[str],
    class_colors: np.ndarray,
    ignore_label: int = 255,
) -> Figure:
    """Draw one row a sample: image, label, prediction, and where the two differ.

    Args:
        samples: at least one; label and error panels are left out if none of them has a label.
        class_names: the K names; the legend holds those that occur in the samples.
        class_colors: (K, 3) uint8, RGB.
        ignore_label: label of pixels that do not count.
    """
    labelled = any(s.label is not None for s in samples)
    titles = ["image", "label", "prediction", "errors"] if labelled else ["image", "prediction"]
    palette = np.full((max(len(class_colors), ignore_label + 1), 3), IGNORED_COLOR, dtype=np.uint8)
    palette[: len(class_colors)] = class_colors
    palette[ignore_label] = IGNORED_COLOR

    present = np.unique(np.concatenate([_class_ids(s, ignore_label) for s in samples]))
    entries = [Patch(color=palette[i] / 255.0, label=class_names[i]) for i in present]
    if labelled:
        entries += [
            Patch(color=np.array(color) / 255.0, label=name)
            for name, color in {
                "ignored": IGNORED_COLOR,
                "correct": CORRECT_COLOR,
                "wrong": WRONG_COLOR,
            }.items()
        ]
    panel = 2.6  # inches
    width = panel * len(titles)
    columns = max(1, int(width / legend_column_width(e.get_label() for e in entries)))
    heights = [panel * s.image.shape[0] / s.image.shape[1] for s in samples]
    legend_height = 0.2 * -(-len(entries) // columns)
    fig = figure(width, sum(heights) + 0.2 * len(samples) + legend_height + 0.4)
    axes = fig.subplots(len(samples), len(titles), squeeze=False, height_ratios=heights)
    for row, sample in zip(axes, samples):
        panels = {"image": sample.image, "prediction": palette[sample.prediction]}
        notes = {"image": sample.name}
        if sample.label is not None:
            panels["label"] = palette[sample.label]
            panels["errors"], notes["errors"] = _errors(sample, ignore_label)
        for ax, title in zip(row, titles):
            ax.set_axis_off()
            if title in panels:
                ax.imshow(panels[title], interpolation="nearest" if title != "image" else None)
                ax.set_title(notes.get(title, ""), fontsize=FONT_SIZE - 1, pad=3)
    for ax, title in zip(axes[0], titles):
        note = ax.get_title()
        ax.set_title(title + (f"\n{note}" if note else "\n"), fontsize=FONT_SIZE, pad=3)
    fig.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=FONT_SIZE)
    return fig


def _class_ids(sample: Sample, ignore_label: int) -> np.ndarray:
    ids = np.unique(sample.prediction)
    if sample.label is None:
        return ids
    labels = np.unique(sample.label)
    return np.concatenate([ids, labels[labels != ignore_label]]).astype(np.int64)


def _errors(sample: Sample, ignore_label: int) -> tuple[np.ndarray, str]:
    """The error map (H, W, 3), and the share of the pixels that are right, in words."""
    counted = sample.label != ignore_label
    right = counted & (sample.prediction == sample.label)
    image = np.where(right[..., None], CORRECT_COLOR, WRONG_COLOR).astype(np.uint8)
    image[~counted] = IGNORED_COLOR
    if not counted.any():
        return image, "all ignored"
    return image, f"{100 * right.sum() / counted.sum():.1f} % correct"

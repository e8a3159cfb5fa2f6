"""Images beside their labels, predictions and errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .style import FONT_SIZE, farthest_color, figure, legend_column_width, plain, wrap

IGNORED_COLOR = (0, 0, 0)
CORRECT_COLOR = (232, 232, 232)


@dataclass(frozen=True)
class Sample:
    """An image with what is known about it, all of the same size.

    Attributes:
        name: its title in the figure.
        image: (H, W, 3) uint8, RGB.
        predictions: (H, W) class ids, by the name of the network that they come from.
        label: (H, W) class ids and the ignore label, or None for an image without label.
    """

    name: str
    image: np.ndarray
    predictions: Mapping[str, np.ndarray]
    label: np.ndarray | None


def draw_predictions(
    samples: Sequence[Sample],
    class_names: Sequence[str],
    class_colors: np.ndarray,
    ignore_label: int = 255,
) -> Figure:
    """Draw a row for each sample: image, label, predictions, and where each prediction differs from the label.

    Args:
        samples: at least one, with predictions of the same networks. Label and error panels are left out if none of
            them has a label.
        class_names: the K names; the legend holds those that occur in the samples.
        class_colors: (K, 3) uint8, RGB.
        ignore_label: label of pixels that do not count.
    """
    networks = list(samples[0].predictions)
    labelled = any(s.label is not None for s in samples)
    # Panels: (what is shown, network). Headings name the network if there are several.
    panels = [("image", ""), *([("label", "")] if labelled else []), *(("prediction", n) for n in networks)]
    panels += [("errors", n) for n in networks] if labelled else []
    palette = np.full((max(len(class_colors), ignore_label + 1), 3), IGNORED_COLOR, dtype=np.uint8)
    palette[: len(class_colors)] = class_colors
    palette[ignore_label] = IGNORED_COLOR
    wrong_color = farthest_color(class_colors)

    present = np.unique(np.concatenate([_class_ids(s, ignore_label) for s in samples]))
    entries = [Patch(color=palette[i] / 255.0, label=plain(class_names[i])) for i in present]
    if labelled:
        entries += [
            Patch(color=np.array(color) / 255.0, label=name)
            for name, color in {
                "ignored": IGNORED_COLOR,
                "correct": CORRECT_COLOR,
                "wrong": wrong_color,
            }.items()
        ]
    side = 2.6  # inches
    width = side * len(panels)
    columns = max(1, int(width / legend_column_width(e.get_label() for e in entries)))
    heights = [side * s.image.shape[0] / s.image.shape[1] for s in samples]
    legend_height = 0.2 * -(-len(entries) // columns)
    fig = figure(width, sum(heights) + 0.2 * len(samples) + legend_height + 0.4)
    axes = fig.subplots(len(samples), len(panels), squeeze=False, height_ratios=heights)
    for row, sample in zip(axes, samples):
        for ax, (what, network) in zip(row, panels):
            ax.set_axis_off()
            image, note = _panel(sample, what, network, palette, wrong_color, ignore_label)
            if image is not None:
                ax.imshow(image, interpolation="nearest" if what != "image" else None)
                ax.set_title(wrap(note, side), fontsize=FONT_SIZE - 1, pad=3)
    for ax, (what, network) in zip(axes[0], panels):
        heading = wrap(f"{what}, {network}" if network and len(networks) > 1 else what, side)
        ax.set_title(f"{heading}\n{ax.get_title()}", fontsize=FONT_SIZE, pad=3)
    fig.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=FONT_SIZE)
    return fig


def share_correct(prediction: np.ndarray, label: np.ndarray, ignore_label: int = 255) -> float | None:
    """The share of the pixels with a label that are right; None if all are ignored."""
    counted = label != ignore_label
    return float((prediction == label)[counted].mean()) if counted.any() else None


def _panel(
    sample: Sample, what: str, network: str, palette: np.ndarray, wrong_color: tuple[int, int, int], ignore_label: int
) -> tuple[np.ndarray | None, str]:
    """A panel's image (H, W, 3), None where the sample has none, and its note."""
    if what == "image":
        return sample.image, plain(sample.name)
    if what == "prediction":
        return palette[sample.predictions[network]], ""
    if sample.label is None:
        return None, ""
    if what == "label":
        return palette[sample.label], ""
    return _errors(sample.predictions[network], sample.label, wrong_color, ignore_label)


def _class_ids(sample: Sample, ignore_label: int) -> np.ndarray:
    ids = np.unique(np.concatenate([np.unique(p) for p in sample.predictions.values()]))
    if sample.label is None:
        return ids
    labels = np.unique(sample.label)
    return np.concatenate([ids, labels[labels != ignore_label]]).astype(np.int64)


def _errors(
    prediction: np.ndarray, label: np.ndarray, wrong_color: tuple[int, int, int], ignore_label: int
) -> tuple[np.ndarray, str]:
    """The error map (H, W, 3), and the share of the pixels that are right, in words."""
    image = np.where((prediction == label)[..., None], CORRECT_COLOR, wrong_color).astype(np.uint8)
    image[label == ignore_label] = IGNORED_COLOR
    share = share_correct(prediction, label, ignore_label)
    return image, "all ignored" if share is None else f"{100 * share:.1f} % correct"

"""A picture of a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ..evaluation.metrics import summarize_confusion
from .style import FONT_SIZE, figure, plain

# With more classes than this, cells are too small for numbers.
MAX_ANNOTATED = 30
# Of the bars of IoU, light enough for black numbers.
BAR_COLOR = "#56b4e9"


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], ignore_label: int = 255) -> Figure:
    """Draw a confusion matrix with every row in percent of its class's pixels, and the IoU of each class beside it.

    Args:
        confusion: (K, K) pixels, rows are labels and columns predictions.
        class_names: the K names.
        ignore_label: label of pixels that do not count, which may be one of the classes.
    """
    ignored_class = ignore_label if ignore_label < len(class_names) else None
    results = summarize_confusion(confusion, class_names, ignored_class=ignored_class)
    iou = np.array([results[f"IoU-{name}"] for name in class_names])
    class_names = [plain(name) for name in class_names]
    count = len(class_names)
    total = confusion.sum(1, keepdims=True)
    share = np.full(confusion.shape, np.nan)
    np.divide(100.0 * confusion, total, out=share, where=total > 0)

    cell = np.interp(count, [12, 150], [0.42, 0.13])  # inches
    font = np.interp(count, [12, 150], [FONT_SIZE, 6.5])
    names = 0.075 * font / FONT_SIZE * max(map(len, class_names))  # inches
    side = max(cell * count, 2.5)
    title_font = max(FONT_SIZE + 1, 0.8 * side)
    beside = 0.9  # inches, width of the bars
    fig = figure(side + names + 1.7 + beside, side + names + 1.0)
    ax = fig.subplots()
    bars = ax.inset_axes((1 + 0.1 / side, 0, beside / side, 1), sharey=ax)
    # The root makes shares of a few percent visible.
    image = ax.imshow(np.ma.masked_invalid(share), cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    ax.set_facecolor("0.85")
    ax.set_xticks(range(count), class_names, rotation=90, fontsize=font)
    ax.set_yticks(range(count), class_names, fontsize=font)
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.92", linewidth=0.4)
    ax.tick_params(which="minor", length=0)
    ax.set_xlabel("predicted class", fontsize=title_font)
    ax.set_ylabel("labelled class", fontsize=title_font)
    absent = "; grey rows: no pixels of this class" if np.isnan(share).any() else ""
    ax.set_title(f"Share of each class's pixels (%){absent}", fontsize=title_font)
    bars.barh(range(count), np.nan_to_num(iou), height=0.8, color=BAR_COLOR)
    bars.set_xlim(0, 100)
    bars.tick_params(which="both", left=False, labelleft=False)
    bars.tick_params(axis="x", labelsize=font - 1)
    bars.set_xlabel("IoU (%)", fontsize=title_font)
    for side_of_bars in ("top", "right", "left"):
        bars.spines[side_of_bars].set_visible(False)
    bar = fig.colorbar(image, ax=ax, shrink=0.8, pad=0.01, aspect=40)
    bar.ax.tick_params(labelsize=title_font - 1)
    if count <= MAX_ANNOTATED:
        for row, column in zip(*np.nonzero(share >= 0.5)):
            value = share[row, column]
            color = "white" if value > 40 else "black"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=font - 2)
        for row in np.nonzero(np.isfinite(iou))[0]:
            right_of = iou[row] < 60
            bars.text(
                iou[row] + (4 if right_of else -4), row, f"{iou[row]:.0f}", ha="left" if right_of else "right",
                va="center", fontsize=font - 1,
            )  # fmt: skip
    return fig

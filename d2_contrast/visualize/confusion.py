"""A picture of a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from .style import FONT_SIZE, figure, plain

# With more classes than this, cells are too small for numbers.
MAX_ANNOTATED = 30


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix with every row in percent of its class's pixels.

    Args:
        confusion: (K, K) pixels, rows are labels and columns predictions.
        class_names: the K names.
    """
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
    fig = figure(side + names + 1.6, side + names + 1.0)
    ax = fig.subplots()
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
    bar = fig.colorbar(image, ax=ax, shrink=0.8, pad=0.01, aspect=40)
    bar.ax.tick_params(labelsize=title_font - 1)
    if count <= MAX_ANNOTATED:
        for row, column in zip(*np.nonzero(share >= 0.5)):
            value = share[row, column]
            color = "white" if value > 40 else "black"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=font - 2)
    return fig

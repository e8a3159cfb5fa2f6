"""What all figures share. They are drawn as objects of their own, without pyplot's global state."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

FONT_SIZE = 9  # points
DPI = 150
# Longest side of a saved picture, pixels.
MAX_PIXELS = 8000


def figure(width: float, height: float) -> Figure:
    """A figure of this size in inches whose parts are laid out without overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def save(fig: Figure, path: str) -> str:
    """Write a figure as a PNG file and return its path."""
    dpi = min(DPI, MAX_PIXELS / max(fig.get_size_inches()))
    with open(path, "wb") as f:
        fig.savefig(f, format="png", dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return path


def legend_column_width(names: Iterable[str]) -> float:
    """Width of a legend column that holds these names, inches."""
    return 0.085 * max(map(len, names), default=0) + 0.5


def distinct_colors(count: int) -> np.ndarray:
    """Colours for classes whose dataset gives none, (count, 3) uint8 RGB, spread over hue and lightness."""
    from matplotlib.colors import hsv_to_rgb

    i = np.arange(count)
    hsv = np.stack([(i * 0.61803399) % 1, 0.55 + 0.4 * (i % 3) / 2, 0.95 - 0.35 * (i % 2)], axis=1)
    return (255 * hsv_to_rgb(hsv)).round().astype(np.uint8)

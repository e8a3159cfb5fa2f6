"""What all figures share. They are drawn as objects of their own, without pyplot's global state."""

import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from ..output import write_whole

FONT_SIZE = 9  # points
DPI = 150
# Longest side of a saved picture, pixels.
MAX_PIXELS = 8000
# Longer names are cut.
MAX_LETTERS = 60
# Vivid colours, RGB. The one that differs most from the colours of the classes marks errors.
SIGNALS = ((255, 0, 255), (255, 0, 0), (255, 0, 110), (255, 110, 0), (0, 170, 190))
# Distinct for colour-blind eyes, too (Okabe & Ito), RGB from 0 to 1.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
# One marker for each scale of a network.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class PlainFigure(Figure):
    """A figure that draws texts as they are: a name with dollar signs is no formula."""

    def draw(self, renderer) -> None:
        axes = [axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)]
        powers = {
            x for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter) for x in axis.findobj(Text)
        }
        for text in self.findobj(Text):
            if text not in powers:
                text.set_parse_math(False)
        super().draw(renderer)


def figure(width: float, height: float) -> Figure:
    """A figure of this size in inches whose parts are laid out without overlap, and whose texts are no formulas."""
    return PlainFigure(figsize=(width, height), layout="constrained")


def save(fig: Figure, path: str) -> str:
    """Write a figure as a PNG file and return its path."""
    dpi = min(DPI, MAX_PIXELS / max(fig.get_size_inches()))
    with write_whole(path) as file:
        fig.savefig(file, format="png", dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return path


def plain(name: str) -> str:
    """Turn the name of a class or file into one line of letters that can be drawn, not too long."""
    name = "".join(" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(name) > MAX_LETTERS:
        name = name[: MAX_LETTERS - 1] + "…"
    # Legends leave out names that start with an underscore.
    return "\N{ZERO WIDTH SPACE}" + name if name.startswith("_") else name


def wrap(text: str, width: float) -> str:
    """Break a title into lines that fit a panel of this width in inches. Long words are broken, too."""
    letters = max(int(width / 0.085), 10)
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, letters) or [""])


def legend_column_width(names: Iterable[str]) -> float:
    """Width of a legend column that holds these names, inches."""
    return 0.085 * max(map(len, names), default=0) + 0.5


def farthest_color(colors: np.ndarray) -> tuple[int, int, int]:
    """Choose the colour of SIGNALS whose nearest neighbour among the given colours (K, 3) is farthest away."""
    return max(SIGNALS, key=lambda signal: np.linalg.norm(np.asarray(colors, float) - signal, axis=1).min())


def rgb(color: Sequence[int]) -> str:
    """A colour (3,) from 0 to 255 as CSS writes it."""
    return f"rgb({', '.join(str(int(value)) for value in color)})"

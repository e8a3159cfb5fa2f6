"""Where the losses are: a network with its four feature maps, and the terms within and across scales."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

GREY, BLUE, ORANGE, GREEN = "#e8e8e8", "#9ecae1", "#d95f02", "#1b9e77"
STRIDES, WEIGHTS = (4, 8, 16, 32), (1, 0.7, 0.4, 0.1)
ROWS = (3.3, 2.2, 1.1, 0.0)


def draw() -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    ax = figure.subplots()
    _box(ax, 0, 1.65, 1.1, 1.1, "image", GREY)
    for row, stride, weight in zip(ROWS, STRIDES, WEIGHTS):
        name = f"p{STRIDES.index(stride) + 2}"
        width = 2.0 - 0.35 * STRIDES.index(stride)
        _box(ax, 3, row, width, 0.6, f"{name}, stride {stride}" if width > 1.4 else f"{name}, {stride}", BLUE)
        _arrow(ax, (1.1, 2.2), (3, row + 0.3))
        _arrow(ax, (3 + width, row + 0.3), (5.5, row + 0.3))
        _box(ax, 5.5, row, 1.3, 0.6, "projector", GREY)
        _arrow(ax, (6.8, row + 0.3), (7.5, row + 0.3))
        _box(ax, 7.5, row, 1.3, 0.6, "anchors", GREY)
        _arrow(ax, (8.8, row + 0.3), (10.4, row + 0.3), ORANGE)
        ax.text(10.5, row + 0.3, f"within the scale, × {weight:g}", va="center", color=ORANGE)
    for other, bend in ((2, -0.35), (3, -0.45)):
        ends = (8.85, ROWS[0] + 0.1), (8.85, ROWS[other] + 0.5)
        _arrow(ax, *ends, GREEN, style="<|-|>", connectionstyle=f"arc3,rad={bend}")
    ax.text(10.5, 1.9, "across scales: p2 with p4, p2 with p5", va="center", color=GREEN)
    _box(ax, 3, 4.4, 1.3, 0.6, "head", GREY)
    _arrow(ax, (3.65, 3.9), (3.65, 4.4))
    _arrow(ax, (4.3, 4.7), (10.4, 4.7))
    ax.text(10.5, 4.7, "pixel loss; this row alone at inference", va="center")
    ax.set(xlim=(-0.1, 14), ylim=(-0.1, 5.1))
    ax.axis("off")
    return figure


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="black", linewidth=0.8))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = "black",
    style: str = "-|>",
    connectionstyle: str = "arc3",
) -> None:
    options = {"arrowstyle": style, "mutation_scale": 11, "color": color, "connectionstyle": connectionstyle}
    ax.add_patch(FancyArrowPatch(start, end, **options))

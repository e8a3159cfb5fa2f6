"""Reliability diagrams: how often predictions of a probability are right."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.calibration import BINS, Calibration
from .style import FONT_SIZE, LINE_COLORS, figure, wrap


def draw_calibration(runs: Mapping[str, Calibration]) -> Figure:
    """Draw a reliability diagram for each run, with the share of the pixels in each bin below it.

    Args:
        runs: at least one, by its title.
    """
    columns = min(3, len(runs))
    lines = -(-len(runs) // columns)
    side = 3.6  # inches
    fig = figure(side * columns + 0.4, lines * (side + 1.5))
    grid = fig.subplots(2 * lines, columns, sharex=True, squeeze=False, height_ratios=[3, 1] * lines)
    panels = [(grid[2 * i, j], grid[2 * i + 1, j]) for i in range(lines) for j in range(columns)]
    for pair in panels[len(runs) :]:
        for ax in pair:
            ax.set_axis_off()
    centers = (np.arange(BINS) + 0.5) / BINS
    for (above, below), (title, calibration) in zip(panels, runs.items()):
        bar = {"width": 0.9 / BINS, "color": LINE_COLORS[0]}
        above.bar(centers, np.nan_to_num(100 * calibration.accuracy), **bar)
        above.plot([0, 1], [0, 100], color="black", linestyle="--", linewidth=1)
        above.set_ylim(0, 100)
        above.set_title(wrap(f"{title}\nECE {calibration.ece:.2f} %", side), fontsize=FONT_SIZE + 1)
        below.bar(centers, 100 * calibration.pixels / max(calibration.pixels.sum(), 1), **bar)
        below.set_xlim(0, 1)
        below.set_ylim(bottom=0)
        below.set_xlabel("probability of the predicted class", fontsize=FONT_SIZE)
        for ax in (above, below):
            ax.tick_params(labelsize=FONT_SIZE - 1, labelbottom=True)
            ax.grid(color="0.9")
            ax.set_axisbelow(True)
    for above, below in panels[::columns]:
        above.set_ylabel("pixels that are right (%)", fontsize=FONT_SIZE)
        below.set_ylabel("pixels (%)", fontsize=FONT_SIZE)
    return fig

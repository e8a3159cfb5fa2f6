"""The paired differences of an ablation as a picture."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..visualize.style import FONT_SIZE, figure
from .table import Table


def draw_differences(tables: Sequence[Table]) -> Figure | None:
    """Draw the mean difference of each row with its 95 % interval, and the differences of its seeds.

    There is a panel for each dataset and metric. An interval that is longer than a panel ends in an arrow.

    Returns:
        None if no row can be compared with its baseline yet.
    """
    shown = {table.dataset: [x for x in table.lines if any(x.differences.values())] for table in tables}
    shown = {dataset: lines for dataset, lines in shown.items() if lines}
    if not shown:
        return None
    tables = [table for table in tables if table.dataset in shown]
    columns = max(len(table.metrics) for table in tables)
    heights = [0.9 + 0.32 * len(shown[table.dataset]) for table in tables]
    fig = figure(2.0 + 2.6 * columns, sum(heights) + 0.4)
    axes = fig.subplots(len(tables), columns, squeeze=False, height_ratios=heights)
    fig.suptitle("Mean difference with its 95 % interval; dots: seeds", fontsize=FONT_SIZE)
    for table, row in zip(tables, axes, strict=True):
        lines = shown[table.dataset]
        scores = {line.row: line.scores for line in table.lines}
        for axis in row[len(table.metrics) :]:
            axis.set_visible(False)
        for column, (metric, axis) in enumerate(zip(table.metrics, row)):
            axis.axvline(0, color="0.4", linewidth=1)
            seen = [0.0]
            for y, line in enumerate(lines):
                difference = line.differences[metric]
                if difference is None:
                    continue
                base = scores[line.baseline][metric]
                points = [score - base[seed] for seed, score in line.scores[metric].items() if seed in base]
                axis.plot(points, [y + 0.25] * len(points), "o", color="0.45", markersize=3)
                axis.plot(difference.mean, y, "D", color="C0", markersize=5)
                seen += points
            # Intervals of two seeds are many times as long as all differences, which would become a single dot.
            room = (max(seen) - min(seen)) / 2 or 1.0
            left, right = min(seen) - room, max(seen) + room
            axis.set_xlim(left, right)
            for y, line in enumerate(lines):
                difference = line.differences[metric]
                if difference is None or difference.low is None or difference.high is None:
                    continue
                axis.plot([difference.low, difference.high], [y, y], color="C0", linewidth=1.6)
                if difference.low < left:
                    axis.plot(left, y, "<", color="C0", markersize=5, clip_on=False)
                if difference.high > right:
                    axis.plot(right, y, ">", color="C0", markersize=5, clip_on=False)
            axis.set_yticks(range(len(lines)), [line.row for line in lines] if column == 0 else [])
            axis.set_ylim(len(lines) - 0.4, -0.6)
            axis.set_title(f"{metric}, {table.dataset}", fontsize=FONT_SIZE)
            axis.set_xlabel(f"difference to {_baselines(lines)} (points)", fontsize=FONT_SIZE)
            axis.tick_params(labelsize=FONT_SIZE)
            axis.grid(axis="x", color="0.9")
            axis.set_axisbelow(True)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
    return fig


def _baselines(lines) -> str:
    names = {line.baseline for line in lines}
    return names.pop() if len(names) == 1 else "the baseline"

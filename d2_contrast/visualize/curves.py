"""Curves of a run, from the metrics.json that Detectron2 writes."""

import json
import logging
from collections.abc import Mapping

import numpy as np
from detectron2.utils.file_io import PathManager
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import FONT_SIZE, LINE_COLORS, LINE_STYLES, figure, plain, wrap

logger = logging.getLogger(__name__)

Series = tuple[np.ndarray, np.ndarray]

# A curve of anchors is a running mean over this many logged values: single batches differ a lot.
SMOOTHING = 9


def read_metrics(path: str) -> dict[str, Series]:
    """Read the series of a metrics.json: each line is a JSON object with an "iteration".

    A run that was resumed from a checkpoint repeats iterations: the later record counts. A last line that was
    cut off when the run was killed is left out.

    Returns:
        {name: (iterations, values)}, each in the order of the iterations; NaN where the file has null.
    """
    series: dict[str, dict[int, float]] = {}
    with PathManager.open(path, "r") as f:
        for number, line in enumerate(f, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                if line.strip():
                    logger.warning("%s, line %d is no JSON and is left out", path, number)
                continue
            iteration = record.pop("iteration", None)
            if iteration is None:
                continue
            for name, value in record.items():
                if value is None or isinstance(value, (int, float)):
                    points = series.setdefault(name, {})
                    if points and iteration <= next(reversed(points)):
                        points = {i: v for i, v in points.items() if i < iteration}
                        series[name] = points
                    points[iteration] = value
    return {
        name: (np.array(list(points)), np.array(list(points.values()), dtype=float)) for name, points in series.items()
    }


def draw_curves(metrics: Mapping[str, Series]) -> Figure:
    """Draw losses, mean IoUs and the learning rate over the iterations; a panel without data says so."""
    losses = {k: v for k, v in metrics.items() if _is_loss(k)}
    scores = {k: v for k, v in metrics.items() if _is_score(k)}
    rates = {k: v for k, v in metrics.items() if k == "lr"}

    fig = figure(9.5, 8.5)
    axes = fig.subplots(3, 1, sharex=True, height_ratios=[3, 2.2, 1.4])
    # The sum, the pixel loss, the contrastive ones with scales before pairs of them, and those of others.
    order = sorted(
        losses, key=lambda k: (k != "total_loss", k != "loss_sem_seg", not k.startswith("loss_contrast"), k.count("_"))
    )
    _draw(axes[0], {k: losses[k] for k in order}, "loss (weighted)", "no losses were logged")
    _draw(axes[1], scores, "mean IoU (%)", "no evaluation was logged", marker="o")
    _draw(axes[2], rates, "learning rate", "no learning rate was logged", legend=False)
    values = [v[np.isfinite(v)] for _, v in losses.values()]
    if values and all((v > 0).all() for v in values):
        axes[0].set_yscale("log")
    axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes[2].set_xlabel("iteration", fontsize=FONT_SIZE + 1)
    return fig


def draw_shared_curves(runs: Mapping[str, Mapping[str, Series]]) -> Figure | None:
    """Draw the losses and mean IoUs that all runs logged several times, a panel for each with a line for each run.

    Losses are running means over dots, which are what was logged.

    Args:
        runs: at least two, by their titles: metrics of :func:`read_metrics`.

    Returns:
        None if they have no such curve in common.
    """
    first, *others = runs.values()
    # The sum of all losses says nothing where runs sum different ones.
    curves = [k for k, (iterations, _) in first.items() if (_is_loss(k) or _is_score(k)) and len(iterations) > 1]
    shared = [k for k in curves if k != "total_loss" and all(k in metrics for metrics in others)]
    if not shared:
        return None
    columns = min(2, len(shared))
    lines = -(-len(shared) // columns)
    fig = figure(5.2 * columns, 2.8 * lines + 0.6)
    axes = list(fig.subplots(lines, columns, squeeze=False).flat)
    legend = []
    for i, (title, metrics) in enumerate(runs.items()):
        color, style = LINE_COLORS[i % len(LINE_COLORS)], LINE_STYLES[i % len(LINE_STYLES)]
        legend.append(Line2D([], [], color=color, linestyle=style, label=plain(title)))
        for ax, key in zip(axes, shared):
            if _is_loss(key):
                _draw_smoothed(ax, metrics, key, color, style)
            else:
                ax.plot(*metrics[key], color=color, linestyle=style, marker="o", markersize=3.5)
    for ax, key in zip(axes, shared):
        _prepare(ax, "loss (weighted)" if _is_loss(key) else "IoU (%)")
        ax.set_title(wrap(plain(_in_words(key)), 5), fontsize=FONT_SIZE + 1)
        ax.set_xlabel("iteration", fontsize=FONT_SIZE)
    for ax in axes[len(shared) :]:
        ax.set_axis_off()
    fig.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=FONT_SIZE, frameon=False)
    return fig


def draw_anchors(runs: Mapping[str, Mapping[str, Series]]) -> Figure:
    """Draw how many anchors each scale had over the iterations, and how similar they were: a column for each run.

    Lines are running means; dots are what was logged, each of one batch.

    Args:
        runs: at least one, by its title: metrics of :func:`read_metrics` with the keys "contrast/<scale>/<statistic>".
    """
    scales = sorted({k.split("/")[1] for metrics in runs.values() for k in metrics if is_of_anchors(k)})
    colors = dict(zip(scales, LINE_COLORS * -(-len(scales) // len(LINE_COLORS))))
    side = 7.5  # inches
    fig = figure(side * len(runs) + 1.5, side)
    axes = fig.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False, height_ratios=[2, 3])
    for column, (title, metrics) in zip(axes.T, runs.items()):
        counts, cosines = column
        for scale, color in colors.items():
            _draw_smoothed(counts, metrics, f"contrast/{scale}/num_anchors", color, "-")
            _draw_smoothed(cosines, metrics, f"contrast/{scale}/positive_similarity", color, "-")
            _draw_smoothed(cosines, metrics, f"contrast/{scale}/negative_similarity", color, "--")
        counts.set_title(wrap(f"Anchors of each scale, {title}", side), fontsize=FONT_SIZE + 2)
        _prepare(counts, "anchors in a batch")
        _prepare(cosines, "mean cosine of two anchors")
        cosines.set_xlabel("iteration", fontsize=FONT_SIZE + 1)
    axes[0, 0].set_yscale("symlog", linthresh=10, linscale=0.3)  # logarithmic, and 0 is on it
    axes[0, 0].set_ylim(bottom=0)
    legend = [Line2D([], [], color=color, label=scale) for scale, color in colors.items()]
    legend += [Line2D([], [], color="0.4", label="same class")]
    legend += [Line2D([], [], color="0.4", linestyle="--", label="different classes")]
    fig.legend(handles=legend, loc="outside right center", fontsize=FONT_SIZE, frameon=False)
    return fig


def _draw_smoothed(ax, metrics: Mapping[str, Series], name: str, color: str, style: str) -> None:
    iterations, values = metrics.get(name, (np.zeros(0), np.zeros(0)))
    ax.plot(iterations, values, ".", color=color, markersize=3, alpha=0.3)
    ax.plot(iterations, _running_mean(values, SMOOTHING), color=color, linestyle=style, linewidth=1.6)


def is_of_anchors(key: str) -> bool:
    """Whether a key of metrics.json is a statistic of the anchors of a scale."""
    return key.startswith("contrast/")


def last_anchors(metrics: Mapping[str, Series]) -> dict[str, dict[str, float]]:
    """The statistics of the anchors of each scale, by scale and statistic: means of the last logged values.

    Args:
        metrics: as from :func:`read_metrics`.
    """
    found: dict[str, dict[str, float]] = {}
    for key, (_, values) in metrics.items():
        if is_of_anchors(key):
            _, scale, *statistic = key.split("/")
            found.setdefault(scale, {})["/".join(statistic)] = float(values[-SMOOTHING:].mean())
    return dict(sorted(found.items()))


def _in_words(key: str) -> str:
    """The name of a loss or score for a reader; a dataset that it is of stays before it."""
    dataset, _, name = key.replace("sem_seg/", "").rpartition("/")
    known = {"total_loss": "total loss", "loss_sem_seg": "segmentation loss", "mIoU": "mean IoU"}
    if name.startswith("loss_contrast_"):
        words = "contrast " + name.removeprefix("loss_contrast_").replace("_", ", ")
    elif name.startswith("mIoU-"):
        words = f"mean IoU, {name.removeprefix('mIoU-')}"
    else:
        words = known.get(name, name)
    return f"{dataset}: {words}" if dataset else words


def _is_loss(key: str) -> bool:
    return "loss" in key.rsplit("/")[-1]


def _is_score(key: str) -> bool:
    return key.rsplit("/")[-1].startswith("mIoU")


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of up to ``width`` neighbours around each value, of fewer at the ends."""
    kernel = np.ones(min(width, len(values)))
    if len(kernel) < 2:
        return values
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _draw(ax, series: Mapping[str, Series], ylabel: str, nothing: str, marker="", legend=True) -> None:
    _prepare(ax, ylabel)
    if not series:
        _say(ax, nothing)
        return
    colors = LINE_COLORS[:-1]  # black is that of the total
    for i, (name, (iterations, values)) in enumerate(series.items()):
        # A line through a single point would be invisible.
        ax.plot(
            iterations,
            values,
            label=plain(_in_words(name)),
            color="black" if name == "total_loss" else colors[i % len(colors)],
            linestyle=LINE_STYLES[i // len(colors) % len(LINE_STYLES)],
            linewidth=1.3,
            marker=marker or ("o" if len(values) == 1 else ""),
            markersize=3.5,
        )
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=FONT_SIZE - 1, frameon=False)


def _prepare(ax, ylabel: str) -> None:
    ax.set_ylabel(ylabel, fontsize=FONT_SIZE + 1)
    ax.tick_params(labelsize=FONT_SIZE)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _say(ax, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")

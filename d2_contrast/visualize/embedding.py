"""The space of feature maps, drawn with t-SNE (Fig. 4 of the paper)."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ..evaluation import LabelledVectors
from .style import FONT_SIZE, MARKERS, figure, legend_column_width, plain, wrap

# Fewer points than this make no picture.
MIN_POINTS = 10


def draw_embeddings(
    networks: Mapping[str, Mapping[str, LabelledVectors]],
    class_names: Sequence[str],
    class_colors: np.ndarray,
    title: str,
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Figure:
    """Draw a t-SNE map for each set of vectors, coloured by class.

    Args:
        networks: by its title, a row of the figure: vectors by the title of their column. All rows have the same
            columns. The panels of a single network are laid out two in a row.
        class_names: the K names; the legend holds those that occur.
        class_colors: (K, 3) uint8, RGB.
        title: of the figure.
        notes: a few words on each set of vectors, by the same titles; None for the numbers of vectors.
    """
    if notes is None:
        notes = {name: {m: f"{len(points)} positions" for m, points in maps.items()} for name, maps in networks.items()}
    grid = [
        [(f"{name}\n{m}, {notes[name][m]}".strip(), points) for m, points in maps.items()]
        for name, maps in networks.items()
    ]
    if len(networks) == 1:
        (panels,) = grid
        grid = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    legend = _class_handles(
        (points for maps in networks.values() for points in maps.values()), class_names, class_colors
    )
    legend_columns = -(-len(legend) // (20 * len(grid))) or 1
    legend_width = legend_columns * legend_column_width(h.get_label() for h in legend)
    side = 3.8  # inches
    fig = figure(side * len(grid[0]) + legend_width, (side + 0.2) * len(grid) + 0.4)
    maps = []
    for axes, line in zip(fig.subplots(len(grid), len(grid[0]), squeeze=False), grid):
        for ax in axes[len(line) :]:
            ax.set_axis_off()
        maps += [_Map(ax, wrap(name, side), [("o", points)]) for ax, (name, points) in zip(axes, line)]
    _draw_maps(maps, class_colors)
    fig.legend(handles=legend, loc="outside right center", ncols=legend_columns, frameon=False, fontsize=FONT_SIZE)
    fig.suptitle(title, fontsize=FONT_SIZE + 2)
    return fig


def draw_joint_embeddings(
    panels: Mapping[str, Mapping[str, LabelledVectors]],
    class_names: Sequence[str],
    class_colors: np.ndarray,
    title: str,
) -> Figure:
    """Draw all feature maps of a network in one t-SNE map, coloured by class and marked by scale.

    Args:
        panels: by its title, a panel of the figure: vectors of equal dimension by the name of their scale.
        class_names, class_colors, title: see :func:`draw_embeddings`.
    """
    scales = list(dict.fromkeys(scale for maps in panels.values() for scale in maps))
    markers = dict(zip(scales, MARKERS * -(-len(scales) // len(MARKERS))))
    legend = [_handle(marker, "0.7", scale) for scale, marker in markers.items()]
    legend += _class_handles((p for maps in panels.values() for p in maps.values()), class_names, class_colors)
    legend_columns = -(-len(legend) // 24)
    legend_width = legend_columns * legend_column_width(h.get_label() for h in legend)
    side = 5.2  # inches
    fig = figure(side * len(panels) + legend_width, side + 0.6)
    axes = fig.subplots(1, len(panels), squeeze=False).flat
    _draw_maps(
        [
            _Map(
                ax,
                wrap(f"{name}, {sum(map(len, maps.values()))} positions", side),
                [(markers[scale], points) for scale, points in maps.items()],
            )
            for ax, (name, maps) in zip(axes, panels.items())
        ],
        class_colors,
    )
    fig.legend(handles=legend, loc="outside right center", ncols=legend_columns, frameon=False, fontsize=FONT_SIZE)
    fig.suptitle(title, fontsize=FONT_SIZE + 2)
    return fig


def project(vectors: np.ndarray) -> np.ndarray:
    """Map unit vectors (P, D) to the plane by t-SNE, after PCA to at most 50 dimensions; (P, 2)."""
    if not np.ptp(vectors, axis=0).any():
        return np.zeros((len(vectors), 2))  # all equal: t-SNE has nothing to arrange
    reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    init = "pca" if reduced.shape[1] > 1 else "random"
    return TSNE(perplexity=min(30, (len(vectors) - 1) / 3), init=init, random_state=0).fit_transform(reduced)


class _Map(NamedTuple):
    """A panel that shows sets of vectors, each with its marker, in one t-SNE map."""

    ax: Axes
    title: str
    sets: Sequence[tuple[str, LabelledVectors]]


def _draw_maps(maps: Sequence[_Map], class_colors: np.ndarray) -> None:
    large = [m for m in maps if sum(len(points) for _, points in m.sets) >= MIN_POINTS]
    vectors = [np.concatenate([points.units for _, points in m.sets]) for m in large]
    # A map takes thousands of tiny steps: several threads on one step wait for each other, so each map has its own.
    # OpenMP keeps that limit by thread, BLAS for the whole process.
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(torch.get_num_threads(), initializer=threadpool_limits, initargs=(1, "openmp")) as pool,
    ):
        layouts = dict(zip((m.ax for m in large), pool.map(project, vectors)))
    for ax, title, sets in maps:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(title, fontsize=FONT_SIZE + 1)
        if ax in layouts:
            _scatter(ax, layouts[ax], sets, class_colors)
        else:
            ax.text(0.5, 0.5, "too few labelled positions", transform=ax.transAxes, ha="center", va="center")


def _scatter(ax: Axes, xy: np.ndarray, sets: Sequence[tuple[str, LabelledVectors]], class_colors: np.ndarray) -> None:
    ends = np.cumsum([len(points) for _, points in sets])
    for (marker, points), own in zip(sets, np.split(xy, ends[:-1])):
        # Shuffled, so that no class lies above all others.
        order = np.random.default_rng(0).permutation(len(points))
        colors = class_colors[points.classes[order]] / 255.0
        ax.scatter(*own[order].T, s=12, marker=marker, c=colors, linewidths=0.25, edgecolors="0.3")


def _class_handles(
    sets: Iterable[LabelledVectors], class_names: Sequence[str], class_colors: np.ndarray
) -> list[Line2D]:
    """Legend entries of the classes that occur."""
    present = np.unique(np.concatenate([points.classes for points in sets]))
    return [_handle("o", class_colors[i] / 255.0, plain(class_names[i])) for i in present]


def _handle(marker: str, color, label: str) -> Line2D:
    return Line2D(
        [], [], marker=marker, linestyle="", markersize=5, color=color, markeredgecolor="0.3", markeredgewidth=0.3,
        label=label,
    )  # fmt: skip

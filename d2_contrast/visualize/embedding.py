"""The embedding space of each scale, drawn with t-SNE (Fig. 4 of the paper)."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from ..contrast import resize_labels
from .style import FONT_SIZE, figure, legend_column_width

# Positions that one image may give to a class at a scale, so that a class is drawn from many images.
PER_IMAGE = 16
# Fewer points than this make no picture.
MIN_POINTS = 10

Points = tuple[np.ndarray, np.ndarray]


def sample_embeddings(
    maps: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    strides: Mapping[str, int],
    max_points: int,
    ignore_label: int = 255,
    seed: int = 0,
) -> dict[str, Points]:
    """Draw labelled vectors from feature maps, about equally many of each class.

    Args:
        maps: for each image its feature maps {name: (1, D, h, w)}, of the image padded at its bottom
            and right, and its label (H, W).
        strides: pixels between neighbouring positions of each feature map.
        max_points: largest number of vectors of each feature map.
        ignore_label: label of pixels that give no vector.
        seed: of the draw.

    Returns:
        {name: (vectors (P, D) float32, class ids (P,))}, P at most ``max_points``.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[Points]] = {name: [] for name in strides}
    for features, label in maps:
        for name, stride in strides.items():
            feature = features[name].float().cpu()
            height, width = feature.shape[2] * stride, feature.shape[3] * stride
            missing = (0, max(width - label.shape[1], 0), 0, max(height - label.shape[0], 0))
            padded = F.pad(label.cpu(), missing, value=ignore_label)
            ids = resize_labels(padded[None], feature.shape[2:]).flatten().numpy()
            keep = _per_class(ids, PER_IMAGE, ignore_label, generator)
            drawn[name].append((feature[0].flatten(1).t()[keep].numpy(), ids[keep]))
    result = {}
    for name, parts in drawn.items():
        vectors, ids = (np.concatenate(x) for x in zip(*parts))
        keep = _per_class(ids, max_points // max(len(np.unique(ids)), 1), ignore_label, generator)
        result[name] = vectors[keep], ids[keep]
    return result


def draw_embeddings(
    embeddings: Mapping[str, Points],
    titles: Mapping[str, str],
    class_names: Sequence[str],
    class_colors: np.ndarray,
    title: str,
) -> Figure:
    """Draw one t-SNE map for each set of vectors, coloured by class.

    Args:
        embeddings: {name: (vectors (P, D), class ids (P,))}.
        titles: of each panel, by name.
        class_names: the K names; the legend holds those that occur.
        class_colors: (K, 3) uint8, RGB.
        title: of the figure.
    """
    columns = 1 if len(embeddings) == 1 else 2
    rows = -(-len(embeddings) // columns)
    present = np.unique(np.concatenate([ids for _, ids in embeddings.values()]))
    legend_cols = -(-len(present) // (20 * rows)) or 1
    legend_width = legend_cols * legend_column_width(class_names[i] for i in present)
    fig = figure(4.2 * columns + legend_width, 4.2 * rows + 0.4)
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, (vectors, ids)) in zip(axes.flat, embeddings.items()):
        ax.set_axis_on()
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"{titles[name]}, {len(ids)} positions", fontsize=FONT_SIZE + 1)
        if len(ids) < MIN_POINTS:
            ax.text(0.5, 0.5, "too few labelled positions", transform=ax.transAxes, ha="center", va="center")
            continue
        # Shuffled, so that no class lies above all others.
        order = np.random.default_rng(0).permutation(len(ids))
        xy = project(vectors)[order]
        ax.scatter(*xy.T, s=9, c=class_colors[ids[order]] / 255.0, linewidths=0.2, edgecolors="0.3")
    handles = [
        Line2D(
            [], [], marker="o", linestyle="", markersize=5, markeredgecolor="0.3", markeredgewidth=0.3,
            color=class_colors[i] / 255.0, label=class_names[i],
        )
        for i in present
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside right center", ncols=legend_cols, frameon=False, fontsize=FONT_SIZE)
    fig.suptitle(title, fontsize=FONT_SIZE + 2)
    return fig


def project(vectors: np.ndarray) -> np.ndarray:
    """Map vectors (P, D) to the plane by t-SNE, after PCA to at most 50 dimensions; (P, 2)."""
    if not np.ptp(vectors, axis=0).any():
        return np.zeros((len(vectors), 2))  # all equal: t-SNE has nothing to arrange
    reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    tsne = TSNE(perplexity=min(30, (len(vectors) - 1) / 3), init="pca", random_state=0)
    # Thousands of tiny parallel steps: on a busy machine several threads take ten times as long as one.
    with threadpool_limits(1):
        return tsne.fit_transform(reduced)


def _per_class(ids: np.ndarray, count: int, ignore_label: int, generator: np.random.Generator) -> np.ndarray:
    """Positions of at most ``count`` random members of each class."""
    picks = [generator.permutation(np.flatnonzero(ids == i))[:count] for i in np.unique(ids) if i != ignore_label]
    return np.concatenate(picks) if picks else np.zeros(0, dtype=np.int64)

"""How well the feature maps of a network separate classes, measured without its head.

Every measure takes labelled vectors, drawn from positions of one feature map. Its result is NaN if the vectors do not
allow it, for example with only one class.
"""

from collections.abc import Mapping
from itertools import combinations

from .. import _visualize  # noqa: F401 (a check, so it comes first)

# isort: split
import numpy as np
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from .vectors import LabelledVectors, balance

# Number of vectors of a map that are compared with each other.
MAX_VECTORS = 3000
NEIGHBOURS = 5
# Labelled images from which a few-shot probe learns, and how often they are drawn.
SHOTS = (1, 5, 20)
DRAWS = 5


def measure_map(points: LabelledVectors, seed: int = 0) -> dict[str, float]:
    """All measures of one feature map.

    Args:
        points: vectors of :func:`sample_vectors`.
        seed: of the draws.

    Returns:
        ``positions``, ``classes`` and ``images``, the numbers of those that were compared, and ``neighbour_accuracy``,
        ``probe_accuracy``, ``few_shot_accuracy_<n>`` with ``..._std``, ``alignment``, ``uniformity``,
        ``within_distance``, ``between_distance`` and ``distance_ratio``.
    """
    balanced = balance(points, MAX_VECTORS, seed)
    train_images, test_images = split_images(points.images, seed)
    test = balanced[np.isin(balanced.images, test_images)]
    within, between = class_distances(balanced)
    result = {
        "positions": len(balanced),
        "classes": len(np.unique(balanced.classes)),
        "images": len(np.unique(balanced.images)),
        "neighbour_accuracy": neighbour_accuracy(balanced),
        "probe_accuracy": probe_accuracy(balanced[np.isin(balanced.images, train_images)], test),
    }
    pool = points[np.isin(points.images, train_images)]
    for shots in SHOTS:
        accuracies = few_shot_accuracies(pool, test, shots, DRAWS, seed)
        result[f"few_shot_accuracy_{shots}"] = float(np.mean(accuracies)) if accuracies else np.nan
        result[f"few_shot_accuracy_{shots}_std"] = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else np.nan
    return {
        **result,
        "alignment": alignment(balanced),
        "uniformity": uniformity(balanced),
        "within_distance": within,
        "between_distance": between,
        "distance_ratio": within / between if between > 0 else np.nan,
    }


def measure_scales(maps: Mapping[str, LabelledVectors], seed: int = 0) -> dict[tuple[str, str], dict[str, float]]:
    """How alike the vectors of a class are on two feature maps, for each pair of maps of equal dimension.

    Args:
        maps: vectors of each, fine to coarse.
        seed: of the draws.

    Returns:
        {(finer, coarser): {"similarity_gap": of :func:`similarity_gap`,
        "neighbour_accuracy": of the coarser map's vectors with neighbours on the finer}}.
    """
    balanced = {name: balance(points, MAX_VECTORS, seed) for name, points in maps.items()}
    return {
        (a, b): {
            "similarity_gap": similarity_gap(balanced[a], balanced[b]),
            "neighbour_accuracy": neighbour_accuracy(balanced[b], balanced[a]),
        }
        for a, b in combinations(balanced, 2)
        if balanced[a].vectors.shape[1] == balanced[b].vectors.shape[1]
    }


def neighbour_accuracy(
    queries: LabelledVectors, references: LabelledVectors | None = None, neighbours: int = NEIGHBOURS
) -> float:
    """Share of vectors whose nearest neighbours in other images are of their class; the mean over classes.

    The neighbours are those of largest cosine. They vote; where votes are equal, the larger sum of cosines wins.
    Vectors whose class occurs in no other image are left out.

    Args:
        queries: vectors to classify.
        references: vectors that can be neighbours; None for the queries themselves.
        neighbours: how many vote.
    """
    references = queries if references is None else references
    ids = np.unique(np.concatenate([queries.classes, references.classes]))
    elsewhere = queries.images[:, None] != references.images[None]
    findable = (elsewhere & (queries.classes[:, None] == references.classes[None])).any(1)
    if len(ids) < 2 or not findable.any():
        return np.nan
    similarity = queries.units @ references.units.T
    similarity = np.where(elsewhere, similarity, -np.inf)[findable]
    count = min(neighbours, len(references))
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    cosine = np.take_along_axis(similarity, nearest, axis=1)
    # Cosines of all voters together weigh less than half a vote. One in the same image has none.
    votes = np.where(np.isfinite(cosine), 1 + cosine / (4 * neighbours), 0)
    ballot = np.zeros((len(nearest), len(ids)))
    np.add.at(ballot, (np.arange(len(nearest))[:, None], np.searchsorted(ids, references.classes[nearest])), votes)
    return _balanced_accuracy(ids[ballot.argmax(1)], queries.classes[findable])


def probe_accuracy(train: LabelledVectors, test: LabelledVectors) -> float:
    """Accuracy of a linear classifier, the mean over the classes that both parts have.

    Logistic regression on standardised vectors. The two parts should come from different images.
    """
    known = np.isin(test.classes, train.classes)
    return _fit_and_score(train, test[known])


def few_shot_accuracies(
    pool: LabelledVectors, test: LabelledVectors, shots: int, draws: int, seed: int = 0
) -> list[float]:
    """Accuracies of linear classifiers that learn from a few labelled images, as many as draws of such images.

    A class that the drawn images lack cannot be predicted: it counts as wrong.

    Args:
        pool: vectors from which the images are drawn.
        test: vectors of other images.
        shots: images in a draw.
        draws: number of draws.
        seed: of the draws.

    Returns:
        One accuracy a draw, the mean over the classes of ``test``; a single one if all images make the only draw; [] if
        the pool has fewer images, or if there are no two classes to tell apart.
    """
    images = np.unique(pool.images)
    if len(images) < shots or len(np.unique(pool.classes)) < 2 or len(np.unique(test.classes)) < 2:
        return []
    generator = np.random.default_rng(seed)
    picks = [generator.choice(images, shots, replace=False) for _ in range(draws if len(images) > shots else 1)]
    return [_fit_and_score(pool[np.isin(pool.images, picked)], test) for picked in picks]


def alignment(points: LabelledVectors) -> float:
    """Mean squared distance of two vectors of a class, on the unit sphere; the mean over classes (0 to 4, 0 is best).

    Wang & Isola, ICML 2020, with the pairs of a class as positives. For n unit vectors with the sum s the mean over
    pairs of ``|x - y|^2 = 2 - 2 x·y`` is ``2 - 2 (|s|^2 - n) / (n (n - 1))``.
    """
    units = points.units
    values = []
    for of_class in _by_class(points):
        count = of_class.sum()
        if count > 1:
            own = units[of_class]
            values.append(2 * ((own**2).sum() * count - (own.sum(0) ** 2).sum()) / (count * (count - 1)))
    return float(np.mean(values)) if values else np.nan


def uniformity(points: LabelledVectors) -> float:
    """Log of the mean of ``exp(-2 |x - y|^2)`` over pairs on the unit sphere (-8 to 0, lower is more uniform).

    Wang & Isola, ICML 2020.
    """
    if len(points) < 2:
        return np.nan
    squared = pdist(points.units, "sqeuclidean")
    return float(np.log(np.exp(-2 * squared).mean()))


def class_distances(points: LabelledVectors) -> tuple[float, float]:
    """Distances on the unit sphere within classes and between them.

    Returns:
        The mean distance of a vector from the mean of its class, in the mean over classes; and the mean distance of the
        means of two classes.
    """
    if not len(points):
        return np.nan, np.nan
    classes, members = np.unique(points.classes, return_inverse=True)
    means = _class_means(points, classes)
    distances = np.linalg.norm(points.units - means[members], axis=1)
    within = np.mean([distances[of_class].mean() for of_class in _by_class(points)])
    return float(within), float(pdist(means).mean()) if len(means) > 1 else np.nan


def similarity_gap(a: LabelledVectors, b: LabelledVectors) -> float:
    """How much more a class resembles itself on another feature map than it resembles other classes there.

    The mean cosine of the means of a class on the two maps, minus that of the means of two different classes, over the
    classes that both maps have; up to 2 (1 for nonnegative features), 0 where scales share nothing.
    """
    common = np.intersect1d(a.classes, b.classes)
    if len(common) < 2:
        return np.nan
    cosines = normalize(_class_means(a, common)) @ normalize(_class_means(b, common)).T
    same = np.eye(len(common), dtype=bool)
    return float(cosines[same].mean() - cosines[~same].mean())


def split_images(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide the ids of images into two random halves, for training and for testing."""
    shuffled = np.random.default_rng(seed).permutation(np.unique(images))
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half:]


def _fit_and_score(train: LabelledVectors, test: LabelledVectors) -> float:
    if len(np.unique(test.classes)) < 2:
        return np.nan
    ids = np.unique(train.classes)
    if len(ids) < 2:
        predicted = np.full(len(test), ids[0])
    else:
        # Accuracies of a finer tolerance differ in the third digit.
        probe = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3, max_iter=1000))
        predicted = probe.fit(train.vectors, train.classes).predict(test.vectors)
    return _balanced_accuracy(predicted, test.classes)


def _balanced_accuracy(predicted: np.ndarray, classes: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their vectors that is right."""
    return float(np.mean([(predicted[classes == c] == c).mean() for c in np.unique(classes)]))


def _class_means(points: LabelledVectors, classes: np.ndarray) -> np.ndarray:
    """Means of the unit vectors of some classes, each of which occurs."""
    units = points.units
    return np.stack([units[points.classes == c].mean(0) for c in classes])


def _by_class(points: LabelledVectors) -> list[np.ndarray]:
    """A mask for each class."""
    return [points.classes == c for c in np.unique(points.classes)]

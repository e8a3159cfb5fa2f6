"""Measures of features, against formulas written out and cases known by hand."""

import warnings

import numpy as np
import pytest

from d2_contrast.evaluation import LabelledVectors, features
from d2_contrast.evaluation.features import (
    alignment,
    class_distances,
    few_shot_accuracies,
    measure_map,
    measure_scales,
    neighbour_accuracy,
    probe_accuracy,
    similarity_gap,
    split_images,
    uniformity,
)


def draw(count=120, classes=4, images=10, dim=6, seed=0, spread=1.0):
    """Vectors around the means of their classes."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, classes, count)
    means = np.random.default_rng(99).normal(size=(classes, dim))
    vectors = means[ids] + spread * rng.normal(size=(count, dim))
    return LabelledVectors(vectors.astype(np.float32), ids, rng.integers(0, images, count))


def unit(x):
    return x.astype(np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)


def neighbours_by_loops(queries, references, k):
    a, b = unit(queries.vectors), unit(references.vectors)
    right = {}
    for i in range(len(queries)):
        others = [j for j in range(len(references)) if references.images[j] != queries.images[i]]
        if not any(references.classes[j] == queries.classes[i] for j in others):
            continue
        nearest = sorted(others, key=lambda j: -(a[i] @ b[j]))[:k]
        tally = {}
        for j in nearest:
            votes, cosines = tally.get(references.classes[j], (0, 0.0))
            tally[references.classes[j]] = votes + 1, cosines + a[i] @ b[j]
        winner = max(tally, key=tally.get)
        right.setdefault(queries.classes[i], []).append(winner == queries.classes[i])
    return np.mean([np.mean(r) for r in right.values()])


class TestNeighbours:
    @pytest.mark.parametrize("k", [1, 5, 500])
    def test_equals_loops(self, k):
        points = draw()
        assert neighbour_accuracy(points, neighbours=k) == pytest.approx(neighbours_by_loops(points, points, k))

    def test_neighbours_on_another_map_equal_loops(self):
        a, b = draw(seed=1), draw(count=70, seed=2)
        assert neighbour_accuracy(a, b) == pytest.approx(neighbours_by_loops(a, b, 5))
        assert neighbour_accuracy(a, b) != neighbour_accuracy(b, a)

    def test_the_own_image_does_not_count(self):
        # In each image the two classes are swapped: own neighbours are right, those of other images wrong.
        vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 2, dtype=np.float32)
        points = LabelledVectors(vectors, np.array([0, 0, 1, 1, 1, 1, 0, 0]), np.repeat([0, 1], 4))
        assert neighbour_accuracy(points, neighbours=1) == 0

    def test_equal_votes_go_to_the_more_similar(self):
        references = LabelledVectors(
            np.array([[1, 0], [1, 1], [0, 1]], np.float32), np.array([7, 3, 3]), np.array([1, 1, 1])
        )
        queries = LabelledVectors(np.array([[1, 0.01], [0.01, 1]], np.float32), np.array([7, 3]), np.array([0, 0]))
        # Of two neighbours of the first query each class has one; the nearer is of class 7.
        assert neighbour_accuracy(queries, references, neighbours=2) == 1

    def test_a_class_of_one_image_is_left_out(self):
        points = draw(spread=0.01)
        assert neighbour_accuracy(points) == 1
        alone = LabelledVectors(
            np.concatenate([points.vectors, -points.vectors[:3]]),
            np.concatenate([points.classes, [9] * 3]),
            np.concatenate([points.images, [0] * 3]),
        )
        assert neighbour_accuracy(alone) == 1


class TestProbes:
    def test_separated_classes_are_told_apart(self):
        train, test = draw(seed=1, spread=0.01), draw(seed=2, spread=0.01)
        assert probe_accuracy(train, test) == 1

    def test_without_signal_it_guesses(self):
        rng = np.random.default_rng(0)
        parts = []
        for _ in range(2):
            parts.append(LabelledVectors(rng.normal(size=(2000, 3)), rng.integers(0, 4, 2000), np.zeros(2000, int)))
        assert probe_accuracy(*parts) == pytest.approx(0.25, abs=0.05)

    def test_classes_count_alike_and_unknown_ones_not_at_all(self):
        # Class 1 cannot be told from class 0, which is far more frequent; class 2 is not in training.
        rng = np.random.default_rng(0)
        train = LabelledVectors(rng.normal(size=(400, 2)), np.repeat([0, 1], [390, 10]), np.zeros(400, int))
        test = LabelledVectors(rng.normal(size=(300, 2)), np.repeat([0, 1, 2], [200, 50, 50]), np.ones(300, int))
        assert probe_accuracy(train, test) == 0.5

    def test_few_shots_learn_from_so_many_images(self, monkeypatch):
        pool, test = draw(count=400, images=30), draw(seed=5)
        seen = []
        monkeypatch.setattr(features, "_fit_and_score", lambda train, test: seen.append(set(train.images)) or 0.5)
        assert few_shot_accuracies(pool, test, shots=5, draws=4) == [0.5] * 4
        assert all(len(images) == 5 for images in seen) and len({frozenset(images) for images in seen}) > 1

    def test_a_class_that_the_shots_lack_is_wrong(self):
        # Every image has one class: from one image only that class can be predicted.
        points = draw(count=60, classes=3, spread=0.01)
        pool = LabelledVectors(points.vectors, points.classes, points.classes)
        assert few_shot_accuracies(pool, points, shots=1, draws=5) == pytest.approx([1 / 3] * 5)
        assert few_shot_accuracies(pool, points, shots=3, draws=2) == [1]  # there are no other three
        assert few_shot_accuracies(pool, points, shots=4, draws=2) == []


class TestGeometry:
    def test_alignment_and_uniformity_by_formula(self):
        points = draw(count=40, classes=3)
        x = unit(points.vectors)
        by_class, everything = {}, []
        for i in range(40):
            for j in range(40):
                if i != j:
                    squared = ((x[i] - x[j]) ** 2).sum()
                    everything.append(np.exp(-2 * squared))
                    if points.classes[i] == points.classes[j]:
                        by_class.setdefault(points.classes[i], []).append(squared)
        assert alignment(points) == pytest.approx(np.mean([np.mean(v) for v in by_class.values()]))
        assert uniformity(points) == pytest.approx(np.log(np.mean(everything)))

    def test_extremes(self):
        same = LabelledVectors(np.tile([3.0, 4.0], (6, 1)), np.repeat([0, 1], 3), np.arange(6))
        assert alignment(same) == pytest.approx(0) and uniformity(same) == pytest.approx(0)
        assert class_distances(same) == pytest.approx((0, 0), abs=1e-7)
        opposite = LabelledVectors(np.array([[1.0, 0], [-5, 0]]), np.array([0, 0]), np.array([0, 1]))
        assert alignment(opposite) == pytest.approx(4) and uniformity(opposite) == pytest.approx(-8)

    def test_class_distances_by_hand(self):
        vectors = np.array([[2, 0], [0, 5], [-1, 0], [-1, 0]], dtype=np.float32)
        points = LabelledVectors(vectors, np.array([0, 0, 1, 1]), np.arange(4))
        within, between = class_distances(points)  # means (0.5, 0.5) and (-1, 0)
        assert within == pytest.approx(np.sqrt(0.5) / 2) and between == pytest.approx(np.sqrt(2.5))

    def test_similarity_gap_by_hand(self):
        a = LabelledVectors(np.array([[1, 0], [0, 1], [1, 1.0]]), np.array([0, 1, 5]), np.arange(3))
        b = LabelledVectors(np.array([[3, 0], [0, 3.0]]), np.array([0, 1]), np.arange(2))
        assert similarity_gap(a, b) == pytest.approx(1)
        swapped = LabelledVectors(b.vectors, np.array([1, 0]), b.images)
        assert similarity_gap(a, swapped) == pytest.approx(-1)


class TestAll:
    def test_separated_classes(self):
        result = measure_map(draw(count=600, images=50, spread=0.01))
        for name in ("neighbour_accuracy", "probe_accuracy", "few_shot_accuracy_20"):
            assert result[name] == 1
        assert result["distance_ratio"] < 0.05 and result["alignment"] < 0.01
        assert result["positions"] == 600 and result["classes"] == 4 and result["images"] == 50

    def test_a_single_draw_has_no_deviation(self):
        result = measure_map(draw(count=400, images=10, spread=2))  # five of them are for training
        assert 0 < result["few_shot_accuracy_5"] < 1 and np.isnan(result["few_shot_accuracy_5_std"])
        assert result["few_shot_accuracy_1_std"] > 0

    def test_more_spread_is_worse(self):
        good, bad = (measure_map(draw(count=600, images=50, spread=s)) for s in (0.5, 3))
        for name in ("neighbour_accuracy", "probe_accuracy", "few_shot_accuracy_1", "few_shot_accuracy_20"):
            assert good[name] > bad[name]
        assert good["alignment"] < bad["alignment"] and good["distance_ratio"] < bad["distance_ratio"]
        assert good["few_shot_accuracy_1"] < good["few_shot_accuracy_20"]

    @pytest.mark.parametrize("count, classes, images", [(0, 3, 5), (1, 1, 1), (3, 2, 1), (40, 1, 8), (5, 5, 5)])
    def test_what_cannot_be_measured_is_nan(self, count, classes, images):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            points = draw(count, classes, images)
            result = measure_map(points)
            pairs = measure_scales({"a": points, "b": points})
        assert np.isnan(result["few_shot_accuracy_20"])
        if classes == 1 or count < 2:
            assert np.isnan([result["neighbour_accuracy"], result["probe_accuracy"], result["distance_ratio"]]).all()
            assert np.isnan(list(pairs["a", "b"].values())).all()

    def test_scales_of_equal_dimension_are_paired(self):
        maps = {"a": draw(seed=1, spread=0.01), "b": draw(seed=2, spread=0.01), "c": draw(dim=5)}
        pairs = measure_scales(maps)
        assert list(pairs) == [("a", "b")]
        assert pairs["a", "b"]["neighbour_accuracy"] == 1
        assert pairs["a", "b"]["similarity_gap"] == pytest.approx(similarity_gap(maps["a"], maps["b"]))

    def test_the_coarser_of_two_maps_has_its_neighbours_on_the_finer(self):
        finer, coarser = draw(seed=1), draw(count=70, seed=2)
        pairs = measure_scales({"finer": finer, "coarser": coarser})
        expected = neighbours_by_loops(coarser, finer, 5)
        assert pairs["finer", "coarser"]["neighbour_accuracy"] == pytest.approx(expected)

    def test_images_are_split_once(self):
        train, test = split_images(np.repeat(np.arange(9), 3))
        assert len(train) == 4 and sorted([*train, *test]) == list(range(9))

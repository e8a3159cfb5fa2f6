"""The figures themselves: what is in them, and that nothing overlaps."""

import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from d2_contrast.visualize import (
    Sample,
    draw_confusion,
    draw_curves,
    draw_embeddings,
    draw_predictions,
    read_metrics,
    sample_embeddings,
)
from d2_contrast.visualize.style import distinct_colors

NAMES = [f"class {i}" for i in range(12)]
COLORS = distinct_colors(12)


def legend_texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def check_no_overlap(fig):
    """Panels, with their titles and names, and legends keep clear of each other."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    renderer = canvas.get_renderer()
    parts = [ax.get_tightbbox(renderer) for ax in fig.axes]
    parts += [legend.get_window_extent(renderer) for legend in fig.legends]
    for a, b in itertools.combinations(parts, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 1, (a, b)


def sample(size=(40, 60), label=True, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.choice([2, 5, 255], size)
    return Sample(
        name=f"image {seed}",
        image=rng.integers(0, 255, (*size, 3)).astype(np.uint8),
        prediction=np.where(rng.random(size) < 0.5, 2, 7),
        label=truth if label else None,
    )


class TestPredictions:
    def test_panels_and_legend(self):
        fig = draw_predictions([sample(), sample(seed=1)], NAMES, COLORS)
        assert len(fig.axes) == 2 * 4 and all(len(ax.images) == 1 for ax in fig.axes)
        assert legend_texts(fig.legends[0]) == [
            "class 2", "class 5", "class 7", "ignored", "correct", "wrong",
        ]  # fmt: skip
        assert [ax.get_title().split("\n")[0] for ax in fig.axes[:4]] == [
            "image", "label", "prediction", "errors",
        ]  # fmt: skip
        check_no_overlap(fig)

    def test_the_error_map_by_hand(self):
        s = Sample("", np.zeros((1, 4, 3), np.uint8), np.array([[0, 1, 2, 0]]), np.array([[0, 2, 2, 255]]))
        fig = draw_predictions([s], NAMES, COLORS)
        error = fig.axes[3].images[0].get_array()
        red = [214, 39, 40]
        assert error.tolist() == [[[232] * 3, red, [232] * 3, [0] * 3]]
        assert "66.7 % correct" in fig.axes[3].get_title()
        assert fig.axes[1].images[0].get_array()[0, 1].tolist() == COLORS[2].tolist()

    def test_without_labels(self):
        fig = draw_predictions([sample(label=False)], NAMES, COLORS)
        assert len(fig.axes) == 2 and legend_texts(fig.legends[0]) == ["class 2", "class 7"]

    def test_ids_above_255_and_an_ignored_class(self):
        names = [f"class {i}" for i in range(400)]
        s = Sample("", np.zeros((1, 3, 3), np.uint8), np.array([[399, 0, 2]]), np.array([[399, 65535, 255]]))
        fig = draw_predictions([s], names, distinct_colors(400), ignore_label=65535)
        label = fig.axes[1].images[0].get_array()[0].tolist()
        assert label == [distinct_colors(400)[399].tolist(), [0, 0, 0], distinct_colors(400)[255].tolist()]
        assert "50.0 % correct" in fig.axes[3].get_title()

        s = Sample("", np.zeros((1, 2, 3), np.uint8), np.array([[0, 1]]), np.array([[0, 1]]))
        fig = draw_predictions([s], NAMES, COLORS, ignore_label=0)
        assert fig.axes[1].images[0].get_array()[0].tolist() == [[0, 0, 0], COLORS[1].tolist()]

    def test_wide_images_and_many_classes(self):
        names = [f"a long class name {i}" for i in range(150)]
        rng = np.random.default_rng(0)
        s = Sample("x", np.zeros((64, 128, 3), np.uint8), rng.integers(0, 150, (64, 128)), np.zeros((64, 128), int))
        fig = draw_predictions([s], names, distinct_colors(150))
        assert len(legend_texts(fig.legends[0])) == 153
        check_no_overlap(fig)


class TestConfusion:
    @pytest.mark.parametrize("count", [1, 12, 59, 150])
    def test_names_and_shares(self, count):
        rng = np.random.default_rng(0)
        matrix = rng.integers(1, 100, (count, count))
        matrix[count // 2 + 1 :] = 0
        fig = draw_confusion(matrix, [f"rather a name {i}" for i in range(count)])
        ax = fig.axes[0]
        shares = ax.images[0].get_array()
        np.testing.assert_allclose(shares[0].sum(), 100)
        np.testing.assert_allclose(shares[0], 100 * matrix[0] / matrix[0].sum())
        assert shares.mask[count // 2 + 1 :].all()
        assert [t.get_text() for t in ax.get_yticklabels()][-1] == f"rather a name {count - 1}"
        check_no_overlap(fig)
        labels = [t.get_window_extent() for t in ax.get_yticklabels()]
        assert all(a.y0 >= b.y1 - 1 for a, b in zip(labels, labels[1:])), "class names overlap"
        assert max(fig.get_size_inches()) < 30

    def test_numbers_only_where_they_fit(self):
        assert len(draw_confusion(np.eye(12), NAMES).axes[0].texts) == 12
        assert not draw_confusion(np.eye(150), [str(i) for i in range(150)]).axes[0].texts


class TestCurves:
    def write(self, tmp_path, records, tail=""):
        path = tmp_path / "metrics.json"
        path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
        return str(path)

    def test_a_resumed_run_replaces_what_it_repeats(self, tmp_path):
        first = [{"iteration": i, "total_loss": 1.0, "lr": 0.1} for i in (0, 10, 20, 30)]
        resumed = [{"iteration": i, "total_loss": 2.0, "lr": 0.1} for i in (15, 25)]
        metrics = read_metrics(self.write(tmp_path, first + resumed))
        iterations, values = metrics["total_loss"]
        assert iterations.tolist() == [0, 10, 15, 25] and values.tolist() == [1, 1, 2, 2]

    def test_records_of_one_flush_in_any_order(self, tmp_path):
        records = [{"iteration": 20, "total_loss": 1.0}, {"iteration": 19, "sem_seg/mIoU": 7.0}]
        metrics = read_metrics(self.write(tmp_path, records, tail='{"iteration": 40, "tot'))
        assert metrics["total_loss"][0].tolist() == [20]
        assert metrics["sem_seg/mIoU"][1].tolist() == [7]

    def test_panels(self, tmp_path):
        records = [
            {"iteration": i, "total_loss": 2.0, "loss_sem_seg": 1.0, "loss_contrast_p2": 1.0, "lr": 0.1}
            for i in range(5)
        ]
        records.append({"iteration": 5, "sem_seg/mIoU": 50.0, "sem_seg/mIoU-rare": float("nan")})
        fig = draw_curves(read_metrics(self.write(tmp_path, records)))
        loss, score, rate = fig.axes
        assert legend_texts(loss.get_legend()) == ["total_loss", "loss_sem_seg", "loss_contrast_p2"]
        assert legend_texts(score.get_legend()) == ["mIoU", "mIoU-rare"]
        assert len(rate.lines) == 1
        check_no_overlap(fig)

    def test_missing_series_say_so(self):
        fig = draw_curves({})
        assert [ax.texts[0].get_text() for ax in fig.axes] == [
            "no losses were logged",
            "no evaluation was logged",
            "no learning rate was logged",
        ]


class TestEmbeddings:
    def test_draws_equally_many_of_each_class(self):
        rng = np.random.default_rng(0)
        label = torch.from_numpy(rng.choice([0, 1, 2, 255], (64, 64), p=[0.8, 0.1, 0.05, 0.05]))
        maps = [({"a": torch.randn(1, 5, 16, 16), "b": torch.randn(1, 5, 2, 2)}, label)] * 30
        points = sample_embeddings(maps, {"a": 4, "b": 32}, max_points=90)
        vectors, ids = points["a"]
        assert vectors.shape == (90, 5) and np.bincount(ids).tolist() == [30, 30, 30]
        assert 0 < len(points["b"][1]) <= 90

    def test_vectors_keep_their_class(self):
        # The feature is the label itself, on an image that was padded from 24 x 40 to 32 x 64.
        label = torch.randint(0, 4, (6, 10), generator=torch.Generator().manual_seed(0))
        feature = torch.full((1, 1, 8, 16), -1.0)
        feature[0, 0, :6, :10] = label
        image_label = label.repeat_interleave(4, 0).repeat_interleave(4, 1)
        vectors, ids = sample_embeddings([({"a": feature}, image_label)], {"a": 4}, 100)["a"]
        assert len(ids) > 10 and (vectors[:, 0] == ids).all()

    def test_same_seed_same_points(self):
        label = torch.randint(0, 4, (64, 64))
        maps = [({"a": torch.randn(1, 5, 16, 16)}, label)]
        one, two = (sample_embeddings(maps, {"a": 4}, 20)["a"][0] for _ in range(2))
        np.testing.assert_array_equal(one, two)

    def test_panels_legend_and_separation(self):
        rng = np.random.default_rng(0)
        ids = np.repeat([1, 4], 30)
        vectors = (rng.normal(size=(60, 8)) + 8 * (ids == 4)[:, None]).astype(np.float32)
        points = {"a": (vectors, ids), "b": (vectors[:4], ids[:4]), "c": (vectors * 0, ids)}
        fig = draw_embeddings(points, {n: f"scale {n}" for n in "abc"}, NAMES, COLORS, "title")
        a, b, c, empty = fig.axes
        assert [ax.get_title() for ax in (a, b)] == ["scale a, 60 positions", "scale b, 4 positions"]
        assert legend_texts(fig.legends[0]) == ["class 1", "class 4"]
        assert b.texts[0].get_text() == "too few labelled positions"
        assert len(c.collections) == 1 and not empty.axison
        # Two clusters far apart in space are apart on the map, too: each point's neighbour has its class.
        xy = a.collections[0].get_offsets().data
        color = a.collections[0].get_facecolors()
        distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(60)
        assert (color == color[distance.argmin(1)]).all()
        check_no_overlap(fig)

"""The figures themselves: what is in them, and that nothing overlaps."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from d2_contrast.data.classes import distinct_colors
from d2_contrast.evaluation import Calibration, LabelledVectors, summarize_confusion
from d2_contrast.visualize import (
    Sample,
    draw_anchors,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_embeddings,
    draw_joint_embeddings,
    draw_predictions,
    draw_shared_curves,
    read_metrics,
)
from d2_contrast.visualize.style import SIGNALS, farthest_color, figure, plain

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


def sample(size=(40, 60), label=True, seed=0, networks=("",)):
    rng = np.random.default_rng(seed)
    truth = rng.choice([2, 5, 255], size)
    return Sample(
        name=f"image {seed}",
        image=rng.integers(0, 255, (*size, 3)).astype(np.uint8),
        predictions={name: np.where(rng.random(size) < 0.5, 2, 7) for name in networks},
        label=truth if label else None,
    )


def pixels(fig):
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


class TestNames:
    @pytest.mark.parametrize("name", ["road", "$a_b$", "cost $5", r"\$", r"$\frac{$", "a^2_1"])
    def test_formulas_are_drawn_as_text(self, name):
        """Compared pixel by pixel with a text for which matplotlib's formulas are off."""
        ours, plainest = figure(6, 3), Figure(figsize=(6, 3), layout="constrained")
        for fig, options in ((ours, {}), (plainest, {"parse_math": False})):
            ax = fig.subplots()
            ax.set_title(name, **options)
            ax.set_yticks([0.5], [name], **options)
            (text,) = fig.legend(handles=[Patch(label=name if fig is ours else "x")]).get_texts()
            text.set(text=name, **options)
        np.testing.assert_array_equal(pixels(ours), pixels(plainest))

    def test_powers_on_axes_are_formulas(self):
        images = []
        for fig in (figure(3, 3), Figure(figsize=(3, 3), layout="constrained")):
            ax = fig.subplots()
            ax.plot([1, 1e6])
            ax.set_yscale("log")
            images.append(pixels(fig))
        np.testing.assert_array_equal(*images)

    @pytest.mark.parametrize(
        ("name", "drawn"),
        [
            ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
            ("two\nlines", "two lines"),
            ("\udce9\0", "\N{REPLACEMENT CHARACTER}" * 2),
            ("x" * 60, "x" * 60),
            ("x" * 61, "x" * 59 + "…"),
        ],
    )
    def test_letters(self, name, drawn):
        assert plain(name) == drawn

    def test_underscores_are_kept_in_legends(self):
        fig = draw_curves({"_loss": (np.arange(3), np.ones(3))})
        assert [text.strip("\N{ZERO WIDTH SPACE}") for text in legend_texts(fig.axes[0].get_legend())] == ["_loss"]


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
        s = Sample("", np.zeros((1, 4, 3), np.uint8), {"": np.array([[0, 1, 2, 0]])}, np.array([[0, 2, 2, 255]]))
        fig = draw_predictions([s], NAMES, COLORS)
        error = fig.axes[3].images[0].get_array()
        wrong = list(farthest_color(COLORS))
        assert error.tolist() == [[[232] * 3, wrong, [232] * 3, [0] * 3]]
        assert "66.7 % correct" in fig.axes[3].get_title()
        assert fig.axes[1].images[0].get_array()[0, 1].tolist() == COLORS[2].tolist()

    def test_without_labels(self):
        fig = draw_predictions([sample(label=False)], NAMES, COLORS)
        assert len(fig.axes) == 2 and legend_texts(fig.legends[0]) == ["class 2", "class 7"]

    def test_ids_above_255_and_an_ignored_class(self):
        names = [f"class {i}" for i in range(400)]
        s = Sample("", np.zeros((1, 3, 3), np.uint8), {"": np.array([[399, 0, 2]])}, np.array([[399, 65535, 255]]))
        fig = draw_predictions([s], names, distinct_colors(400), ignore_label=65535)
        label = fig.axes[1].images[0].get_array()[0].tolist()
        assert label == [distinct_colors(400)[399].tolist(), [0, 0, 0], distinct_colors(400)[255].tolist()]
        assert "50.0 % correct" in fig.axes[3].get_title()

        s = Sample("", np.zeros((1, 2, 3), np.uint8), {"": np.array([[0, 1]])}, np.array([[0, 1]]))
        fig = draw_predictions([s], NAMES, COLORS, ignore_label=0)
        assert fig.axes[1].images[0].get_array()[0].tolist() == [[0, 0, 0], COLORS[1].tolist()]

    def test_long_names_of_networks(self):
        networks = ("cross-entropy_of_everything_seed1_f6162256", "with-the-losses_on_all_scales_seed1_0298b59e")
        fig = draw_predictions([sample(networks=networks)], NAMES, COLORS)
        check_no_overlap(fig)
        assert "".join(fig.axes[2].get_title().split()).startswith(f"prediction,{networks[0]}")

    def test_two_networks(self):
        samples = [sample(seed=seed, networks=("one", "other")) for seed in range(2)]
        fig = draw_predictions(samples, NAMES, COLORS)
        assert [ax.get_title().split("\n")[0] for ax in fig.axes[:6]] == [
            "image", "label", "prediction, one", "prediction, other", "errors, one", "errors, other",
        ]  # fmt: skip
        for panel, prediction in zip(fig.axes[2:4], samples[0].predictions.values()):
            np.testing.assert_array_equal(panel.images[0].get_array(), COLORS[prediction])
        notes = [ax.get_title().split("\n")[1] for ax in fig.axes[4:6]]
        assert all(note.endswith("% correct") for note in notes) and notes[0] != notes[1]
        check_no_overlap(fig)

    def test_errors_have_no_class_color(self):
        for taken in range(len(SIGNALS)):
            others = [signal for i, signal in enumerate(SIGNALS) if i != taken]
            assert farthest_color(np.array(others)) == SIGNALS[taken]

    def test_wide_images_and_many_classes(self):
        names = [f"a long class name {i}" for i in range(150)]
        rng = np.random.default_rng(0)
        prediction = rng.integers(0, 150, (64, 128))
        s = Sample("x", np.zeros((64, 128, 3), np.uint8), {"": prediction}, np.zeros((64, 128), int))
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

    @pytest.mark.parametrize("ignore_label", [255, 3])
    def test_iou_beside_the_rows(self, ignore_label):
        matrix = np.random.default_rng(0).integers(0, 100, (12, 12))
        matrix[3] = 0
        ax = draw_confusion(matrix, NAMES, ignore_label).axes[0]
        (bars,) = ax.child_axes
        ignored = ignore_label if ignore_label < 12 else None
        results = summarize_confusion(matrix, NAMES, ignored_class=ignored)
        widths = [bar.get_width() for bar in bars.patches]
        assert widths == pytest.approx([np.nan_to_num(results[f"IoU-{name}"]) for name in NAMES])
        assert len(bars.texts) == 12 - (ignored is not None)
        assert bars.get_ylim() == ax.get_ylim()

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
            {
                "iteration": i, "loss_contrast_p2": 1.0, "loss_contrast_p2_p4": 1.0, "loss_own": 1.0,
                "loss_sem_seg": 1.0, "lr": 0.1, "total_loss": 4.0,
            }
            for i in range(5)
        ]  # fmt: skip
        records.append(
            {"iteration": 5, "sem_seg/mIoU": 50.0, "sem_seg/mIoU-rare": float("nan"), "b_val/sem_seg/mIoU": 5}
        )
        fig = draw_curves(read_metrics(self.write(tmp_path, records)))
        loss, score, rate = fig.axes
        assert legend_texts(loss.get_legend()) == [
            "total loss", "segmentation loss", "contrast p2", "contrast p2, p4", "loss_own",
        ]  # fmt: skip
        assert legend_texts(score.get_legend()) == ["mean IoU", "mean IoU, rare", "b_val: mean IoU"]
        assert len(rate.lines) == 1
        check_no_overlap(fig)

    def test_missing_series_say_so(self):
        fig = draw_curves({})
        assert [ax.texts[0].get_text() for ax in fig.axes] == [
            "no losses were logged",
            "no evaluation was logged",
            "no learning rate was logged",
        ]


class TestSharedCurves:
    steps = np.arange(0, 100, 10)

    def test_a_line_for_each_run(self):
        def metrics(level):
            return {
                "total_loss": (self.steps, np.full(10, level)),
                "loss_sem_seg": (self.steps, np.full(10, level)),
                "sem_seg/mIoU": (self.steps[:3], np.full(3, 10 * level)),
                "lr": (self.steps, np.full(10, level)),
            }

        runs = {"one": metrics(1.0), "_other_": {**metrics(2.0), "loss_contrast_p2": (self.steps, self.steps / 1.0)}}
        fig = draw_shared_curves(runs)
        assert [ax.get_title() for ax in fig.axes] == ["segmentation loss", "mean IoU"]
        assert [line.get_ydata()[0] for line in fig.axes[1].lines] == [10, 20]
        texts = legend_texts(fig.legends[0])
        assert len(texts) == 2 and texts[1].endswith("_other_")
        check_no_overlap(fig)

    def test_nothing_in_common(self):
        once = (self.steps[:1], np.ones(1))
        assert draw_shared_curves({"a": {"sem_seg/mIoU": once}, "b": {"sem_seg/mIoU": once}}) is None
        assert draw_shared_curves({"a": {"loss_a": (self.steps, self.steps)}, "b": {}}) is None


class TestCalibration:
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_bars(self, count):
        calibration = Calibration()
        calibration.add(np.array([0.9, 0.9, 0.5, 0.99]), np.array([True, False, True, True]))
        fig = draw_calibration({f"run $ {i}": calibration for i in range(count)})
        above, below = fig.axes[0], next(ax for ax in fig.axes if ax.get_xlabel())
        assert [bar.get_height() for bar in above.patches] == pytest.approx(np.nan_to_num(100 * calibration.accuracy))
        assert sum(bar.get_height() for bar in below.patches) == pytest.approx(100)
        assert above.get_title() == f"run $ 0\nECE {calibration.ece:.2f} %"
        check_no_overlap(fig)


class TestAnchors:
    def test_curves_by_scale(self):
        iterations = np.arange(0, 200, 20)
        keys = ("num_anchors", "positive_similarity", "negative_similarity")
        one = {f"contrast/{scale}/{key}": (iterations, np.linspace(0, 1, 10)) for scale in ("p5", "p2") for key in keys}
        other = {f"contrast/res3/{keys[0]}": (iterations, np.full(10, 7.0)), "total_loss": (iterations, iterations)}
        fig = draw_anchors({"one": one, "other": other})
        assert legend_texts(fig.legends[0]) == ["p2", "p5", "res3", "same class", "different classes"]
        assert [ax.get_title() for ax in fig.axes[:2]] == ["Anchors of each scale, one", "Anchors of each scale, other"]
        dots = [line.get_ydata() for line in fig.axes[1].lines if len(line.get_ydata())]
        assert [d.tolist() for d in dots] == [[7.0] * 10] * 2  # as logged, and the running mean
        check_no_overlap(fig)

    def test_the_line_is_a_running_mean(self):
        values = np.arange(20.0) ** 2
        fig = draw_anchors({"run": {"contrast/p2/num_anchors": (np.arange(20), values)}})
        line = fig.axes[0].lines[1].get_ydata()
        assert line[10] == pytest.approx(values[6:15].mean()) and line[0] == pytest.approx(values[:5].mean())


class TestEmbeddings:
    ids = np.repeat([1, 4], 30)

    def clusters(self, seed=0):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(60, 8)) + np.where(self.ids == 4, 8, -8)[:, None]
        return LabelledVectors(vectors, self.ids, np.arange(60))

    def check_separation(self, xy, color):
        """Clusters far apart in space are apart on the map, too: each point's neighbour has its class."""
        distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(len(xy))
        assert (color == color[distance.argmin(1)]).all()

    def test_panels_legend_and_separation(self):
        points = self.clusters()
        constant = LabelledVectors(points.vectors * 0, points.classes, points.images)
        maps = {"scale a": points, "scale b": points[:4], "scale c": constant}
        fig = draw_embeddings({"": maps}, NAMES, COLORS, "title")
        a, b, c, empty = fig.axes
        assert [ax.get_title() for ax in (a, b)] == ["scale a, 60 positions", "scale b, 4 positions"]
        assert legend_texts(fig.legends[0]) == ["class 1", "class 4"]
        assert b.texts[0].get_text() == "too few labelled positions"
        assert len(c.collections) == 1 and not empty.axison
        self.check_separation(a.collections[0].get_offsets().data, a.collections[0].get_facecolors())
        check_no_overlap(fig)

    def test_a_row_for_each_network(self):
        runs = {name: {"p2": self.clusters(seed), "p3": self.clusters(seed)} for seed, name in enumerate("xyz")}
        fig = draw_embeddings(runs, NAMES, COLORS, "title")
        assert [ax.get_title() for ax in fig.axes] == [
            f"{name}\n{scale}, 60 positions" for name in "xyz" for scale in ("p2", "p3")
        ]
        noted = draw_embeddings({"x": runs["x"]}, NAMES, COLORS, "title", {"x": {"p2": "good", "p3": "better"}})
        assert [ax.get_title() for ax in noted.axes] == ["x\np2, good", "x\np3, better"]
        check_no_overlap(
            draw_embeddings({"a rather long name " * 5 + n: runs[n] for n in "xy"}, NAMES, COLORS, "title")
        )
        # Both maps of a network are equal here, and so are their pictures; those of another network are not.
        x, x_again, y, *_ = [ax.collections[0].get_offsets().data for ax in fig.axes]
        np.testing.assert_array_equal(x, x_again)
        assert not np.allclose(x, y)
        check_no_overlap(fig)

    def test_all_scales_in_one_map(self):
        points = self.clusters()
        fig = draw_joint_embeddings({"run": {"fine": points, "coarse": points[::3]}}, NAMES, COLORS, "title")
        (ax,) = fig.axes
        fine, coarse = ax.collections
        assert len(fine.get_offsets()) == 60 and len(coarse.get_offsets()) == 20
        assert legend_texts(fig.legends[0]) == ["fine", "coarse", "class 1", "class 4"]
        markers = [handle.get_marker() for handle in fig.legends[0].legend_handles]
        assert markers[0] != markers[1] and markers[2] == markers[3] == "o"
        assert ax.get_title() == "run, 80 positions"
        # A vector that is on both scales is at one place.
        xy, color = (
            np.concatenate([part.get_offsets().data for part in (fine, coarse)]),
            np.concatenate([part.get_facecolors() for part in (fine, coarse)]),
        )
        self.check_separation(xy, color)
        distance = np.linalg.norm(coarse.get_offsets().data[:, None] - fine.get_offsets().data[None], axis=-1)
        assert distance.min(1).max() < 0.1 * np.ptp(xy, axis=0).max()
        check_no_overlap(fig)

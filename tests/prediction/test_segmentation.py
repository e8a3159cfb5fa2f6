"""Results and their pictures."""

import cv2
import numpy as np
import pytest
from known_colors import CLASSES, quarters
from PIL import Image

from d2_contrast.data import Classes
from d2_contrast.prediction import Segmentation, draw_overlay
from d2_contrast.prediction.legend import draw_legend

RGB, LABEL = quarters()


@pytest.fixture
def result():
    return Segmentation(LABEL, CLASSES, RGB)


def colors_in(picture) -> set[tuple[int, ...]]:
    packed = np.unique(np.asarray(picture).astype(np.int64) @ [1 << 16, 1 << 8, 1])
    return {(color >> 16, color >> 8 & 255, color & 255) for color in packed.tolist()}


def test_shares(result):
    expected = {"white": 30 * 40 / 2400, "blue": 30 * 20 / 2400, "green": 10 * 40 / 2400, "red": 10 * 20 / 2400}
    assert result.shares() == pytest.approx(expected) and list(result.shares()) == list(expected)
    assert repr(result) == "Segmentation(40 x 60: white 50.0%, blue 25.0%, green 16.7%, red 8.3%)"
    assert Segmentation(LABEL * 0 + 2, CLASSES, RGB).shares() == {"blue": 1.0}


def test_color_map(result):
    assert [result.color_map()[y, x].tolist() for y, x in ((0, 0), (0, 59), (39, 0), (39, 59))] == [
        list(color) for color in CLASSES.colors
    ]


def test_ids(result):
    assert result.ids() is LABEL
    ids = result.ids("dataset")
    assert ids.dtype == np.uint16 and [ids[0, 0], ids[0, 59], ids[39, 0], ids[39, 59]] == [7, 11, 30, 300]
    with pytest.raises(ValueError, match="the kind of ids is 'raw': expected 'train' or 'dataset'"):
        result.ids("raw")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_overlay(result, alpha):
    picture = np.asarray(result.overlay(alpha, legend=False)).astype(float)
    expected = RGB * (1 - alpha) + CLASSES.palette[LABEL] * alpha
    assert picture.shape == RGB.shape and np.abs(picture - expected).max() <= 0.51


def test_a_high_image(result):
    """It is drawn in bands."""
    tall = Segmentation(np.tile(LABEL, (15, 1)), CLASSES, np.tile(RGB, (15, 1, 1)))
    picture = draw_overlay(tall, 0.5)
    np.testing.assert_array_equal(picture, np.tile(draw_overlay(result, 0.5), (15, 1, 1)))


def test_alpha_is_a_share(result):
    with pytest.raises(ValueError, match="alpha is 50: expected 0 to 1"):
        result.overlay(50)


def test_the_legend_has_the_classes_that_occur(result):
    top = Segmentation(LABEL[:10], CLASSES, RGB[:10])
    legend = np.asarray(top.overlay())[10:]
    found = colors_in(legend)
    for name, color in zip(CLASSES.names[:3], CLASSES.colors):  # the fourth is a grey, as letters have at their edges
        assert (color in found) == (name in ("red", "green"))
    assert set(CLASSES.colors) <= colors_in(np.asarray(result.overlay())[40:])


class TestLegend:
    def test_squares_and_names_do_not_touch_the_border(self):
        for count, width in ((1, 30), (3, 100), (11, 480), (150, 1024), (150, 90)):
            legend = draw_legend(Classes.numbered(count), range(count), width, 16)
            assert legend.shape[1] >= width
            border = np.concatenate([legend[0], legend[-1], legend[:, 0], legend[:, -1]])
            assert (border == 255).all()
            assert set(Classes.numbered(count).colors) <= colors_in(legend)

    def test_room_for_others(self):
        classes = Classes.numbered(30)
        sizes = {draw_legend(classes, shown, 300, 14, room_for=range(24)).shape for shown in ([], [1, 29], range(24))}
        assert len(sizes) == 1

    def test_names_of_all_kinds(self):
        """Each is drawn: no two pictures are equal, and none is the empty one."""
        names = ["straße", "дорога", "a\nb", "_x", "x" * 300, "<b>", "$a$", "naïve"]
        drawn = set()
        for name in names:
            classes = Classes((name,), ((9, 9, 9),), (0,))
            drawn.add(draw_legend(classes, [0], 200, 14).tobytes())
        assert len(drawn) == len(names)


class TestSave:
    @pytest.mark.parametrize(("ids", "dtype"), [("train", np.uint8), ("dataset", np.uint16)])
    def test_label_map(self, result, tmp_path, ids, dtype):
        result.save(tmp_path / "a.png", ids)
        saved = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        assert saved.dtype == dtype
        np.testing.assert_array_equal(saved, result.ids(ids))

    def test_other_formats_are_refused(self, result, tmp_path):
        with pytest.raises(ValueError, match="a.jpg: a label map is written as PNG"):
            result.save(tmp_path / "a.jpg")

    def test_a_folder_that_is_not_there(self, result, tmp_path):
        with pytest.raises(OSError, match="a.png: cannot write this file"):
            result.save(tmp_path / "no" / "a.png")

    def test_overlay_is_a_picture_of_pillow(self, result, tmp_path):
        result.overlay().save(tmp_path / "a.webp")
        assert Image.open(tmp_path / "a.webp").size[0] >= 60

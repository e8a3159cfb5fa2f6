import colorsys

import numpy as np
import pytest
from detectron2.data import transforms as T

from d2_contrast.data.augmentation import RandomColorJitter, RandomScaleCrop, ResizeCropTransform


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def picture(height=61, width=83):
    rng = np.random.RandomState(1)
    return rng.randint(0, 256, (height, width, 3), np.uint8), rng.randint(0, 5, (height, width), np.uint8)


@pytest.mark.parametrize("new_size", [(61, 83), (31, 40), (150, 201), (90, 60), (13, 200)])
def test_window_equals_resizing_the_whole_and_cropping(new_size):
    image, label = picture()
    whole = T.ResizeTransform(61, 83, *new_size)
    big_image, big_label = whole.apply_image(image), whole.apply_segmentation(label)
    for _ in range(20):
        height, width = (np.random.randint(1, n + 1) for n in new_size)
        top, left = np.random.randint(new_size[0] - height + 1), np.random.randint(new_size[1] - width + 1)
        transform = ResizeCropTransform((61, 83), new_size, (top, left, height, width))
        window = np.s_[top : top + height, left : left + width]
        part = transform.apply_image(image)
        assert part.flags.writeable  # as flips that PyTorch computes expect
        difference = part.astype(int) - big_image[window]
        assert abs(difference).max() <= 1  # Pillow's 8-bit filter weights round differently
        np.testing.assert_array_equal(transform.apply_segmentation(label), big_label[window])
        points = np.random.rand(5, 2) * 60
        np.testing.assert_allclose(
            transform.apply_coords(points.copy()), whole.apply_coords(points.copy()) - (left, top)
        )


def test_outside_of_the_picture_is_padding():
    image, label = picture(4, 6)
    transform = ResizeCropTransform((4, 6), (4, 6), (-1, -3, 7, 8), image_fill=9, label_fill=255)
    expected = np.full((7, 8, 3), 9)
    expected[1:5, 3:] = image[:, :5]
    np.testing.assert_array_equal(transform.apply_image(image), expected)
    expected = np.full((7, 8), 255)
    expected[1:5, 3:] = label[:, :5]
    np.testing.assert_array_equal(transform.apply_segmentation(label), expected)


def test_scale_and_aspect_stay_in_their_ranges():
    image, label = picture(100, 200)
    augmentation = RandomScaleCrop(scale_range=(0.5, 2.0), aspect_range=(0.8, 1.25))
    sizes = np.array([augmentation.get_transform(image, label).out_size for _ in range(400)])
    scale = np.sqrt(sizes.prod(axis=1) / 20000)
    aspect = sizes[:, 1] / sizes[:, 0] / 2
    for values, low, high in ((scale, 0.5, 2.0), (aspect, 0.8, 1.25)):
        assert low * 0.97 < values.min() < low * 1.1 and high * 0.9 < values.max() < high * 1.03
    assert abs(scale.mean() - 1.25) < 0.07  # uniform


def test_short_edge_is_set_before_the_scale():
    image, label = picture(100, 200)
    sizes = {
        RandomScaleCrop(short_edge=(50,)).get_transform(image, label).out_size,
        RandomScaleCrop(short_edge=(50,), max_size=80).get_transform(image, label).out_size,
        RandomScaleCrop(scale_range=(2, 2), short_edge=(50,)).get_transform(image, label).out_size,
    }
    assert sizes == {(50, 100), (40, 80), (100, 200)}


def test_every_place_of_the_crop_is_drawn():
    image, label = picture(6, 9)
    augmentation = RandomScaleCrop(crop_size=(4, 12))
    origins = {augmentation.get_transform(image, label).origin for _ in range(300)}
    assert origins == {(top, left) for top in range(3) for left in range(-3, 1)}


@pytest.mark.parametrize(("dtype", "other", "ignore_label"), [(np.uint8, 1, 255), (np.int32, 300, 65535)])
def test_no_class_fills_the_crop_where_that_can_be_avoided(dtype, other, ignore_label):
    image, _ = picture(40, 40)
    label = np.zeros((40, 40), dtype)
    label[:, 30:35] = other
    label[:, 35:] = ignore_label
    augmentation = RandomScaleCrop(crop_size=(8, 8), max_class_share=0.75, ignore_label=ignore_label)
    crops = [augmentation.get_transform(image, label).apply_segmentation(label) for _ in range(300)]
    mixed = 0
    for crop in crops:
        counts = np.array([(crop == c).sum() for c in (0, other)])
        mixed += counts.min() > 0 and counts.max() < 0.75 * counts.sum()
    # One draw gives a mixed crop where the window starts in 24..28: 5 of 33. Ten draws: 81 %.
    assert abs(mixed / 300 - (1 - (28 / 33) ** 10)) < 0.07


def as_detectron2(image, brightness, contrast, saturation):
    image = image.astype(np.float32)  # Detectron2 rounds and clips after each step only for uint8
    for augmentation in (
        T.RandomBrightness(brightness, brightness),
        T.RandomContrast(contrast, contrast),
        T.RandomSaturation(saturation, saturation),
    ):
        image = augmentation.get_transform(image).apply_image(image)
    return image


@pytest.mark.parametrize("factors", [(0.7, 1, 1), (1, 0.7, 1), (1, 1, 0.5), (0.8, 1.3, 0.6), (1.1, 0.8, 1.2)])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_jitter_equals_detectron2s(factors, order):
    rgb = np.random.randint(90, 160, (20, 30, 3), np.uint8)
    jitter = RandomColorJitter(*((f, f) for f in factors), image_format=order)
    step = 1 if order == "RGB" else -1
    image = np.ascontiguousarray(rgb[..., ::step])
    out = jitter.get_transform(image).apply_image(image)[..., ::step]
    expected = as_detectron2(rgb, *factors)
    assert expected.min() > 0 and expected.max() < 255  # or else clipping would matter
    assert abs(out - np.rint(expected)).max() <= 1  # OpenCV's weights have fixed point


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_hue_turns_the_colour_circle(order):
    step = 1 if order == "RGB" else -1
    image = np.random.randint(0, 256, (20, 30, 3), np.uint8)
    jitter = RandomColorJitter(hue=0.05, image_format=order)
    turns = []
    for _ in range(50):
        out = jitter.get_transform(image).apply_image(image)
        before = np.array([colorsys.rgb_to_hsv(*p[::step] / 255) for p in image.reshape(-1, 3)])
        after = np.array([colorsys.rgb_to_hsv(*p[::step] / 255) for p in out.reshape(-1, 3)])
        vivid = (before[:, 1] > 0.5) & (before[:, 2] > 0.5)
        turn = (after - before)[vivid, 0]
        turn -= turn.round()
        turns.append(np.median(turn))
        assert abs(turn - turns[-1]).max() < 0.02
        assert abs((after - before)[vivid, 1:]).max() < 0.03
    assert -0.055 < min(turns) < -0.03 and 0.03 < max(turns) < 0.055

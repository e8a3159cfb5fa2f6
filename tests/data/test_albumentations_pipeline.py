"""Pipelines of Albumentations against NumPy."""

import inspect

import albumentations as A
import numpy as np
import pytest
from detectron2.data import transforms as T

from d2_contrast.config import load_config
from d2_contrast.data.albumentations_pipeline import AlbumentationsPipeline
from d2_contrast.data.augmentation import build_train_augmentation


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


@pytest.fixture
def build(tmp_path):
    def from_transforms(*transforms, data_format="yaml", **options):
        path = tmp_path / f"pipeline.{data_format}"
        A.save(A.Compose(list(transforms)), path, data_format=data_format)
        return AlbumentationsPipeline(str(path), **options)

    return from_transforms


def picture(height=48, width=64, dtype=np.uint8):
    """An image and a label map of 1, 2 and 3 in blocks, as grey as its label says."""
    label = np.random.randint(1, 4, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1).astype(dtype)
    return np.stack([label.astype(np.uint8) * 60] * 3, axis=-1), label


def apply(pipeline, image, label):
    aug_input = T.AugInput(image.copy(), sem_seg=label.copy())
    T.AugmentationList([pipeline])(aug_input)
    assert aug_input.image.dtype == np.uint8 and aug_input.sem_seg.dtype == label.dtype
    return aug_input.image, aug_input.sem_seg


@pytest.mark.parametrize("data_format", ["yaml", "json"])
def test_image_and_label_are_flipped(build, data_format):
    image, label = picture()
    out, out_label = apply(build(A.HorizontalFlip(p=1), data_format=data_format), image, label)
    np.testing.assert_array_equal(out, image[:, ::-1])
    np.testing.assert_array_equal(out_label, label[:, ::-1])


FILLING = [
    name
    for name, transform in inspect.getmembers(A, inspect.isclass)
    if issubclass(transform, A.DualTransform)
    and inspect.signature(transform).parameters.get("fill_mask", inspect.Parameter.empty) is not inspect.Parameter.empty
    and inspect.signature(transform).parameters["fill_mask"].default is not None
]
ARGUMENTS = {
    "Affine": {"rotate": (40, 40), "interpolation": 0},
    "Rotate": {"limit": (40, 40), "interpolation": 0},
    "SafeRotate": {"limit": (40, 40), "interpolation": 0},
    "Perspective": {"scale": (0.2, 0.2), "fit_output": True, "interpolation": 0},
    "Pad": {"padding": 9},
    "PadIfNeeded": {"min_height": 80, "min_width": 80},
    "RandomCrop": {"height": 60, "width": 60, "pad_if_needed": True},
    "CenterCrop": {"height": 60, "width": 60, "pad_if_needed": True},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_filled_areas_are_ignored(build, name):
    assert name in FILLING
    image, label = picture()
    pipeline = build(A.OneOf([getattr(A, name)(**ARGUMENTS[name], fill=(17, 17, 17), p=1)], p=1), ignore_label=200)
    out, out_label = apply(pipeline, image, label)
    filled = out_label == 200
    assert 0.05 < filled.mean() < 0.8
    assert (out[filled] == 17).all()
    np.testing.assert_array_equal(out[~filled], np.stack([out_label[~filled] * 60] * 3, axis=-1))


@pytest.mark.parametrize("transform", [A.GridElasticDeform((4, 4), 10, p=1), A.FrequencyMasking(20, p=1)])
def test_so_are_those_of_transforms_that_take_no_fill_mask(build, transform):
    pipeline = build(transform, ignore_label=7)
    outs = [apply(pipeline, np.full((48, 64, 3), 120, np.uint8), np.full((48, 64), 255, np.uint8)) for _ in range(9)]
    images, labels = map(np.stack, zip(*outs))
    assert (labels == 7).any() and set(np.unique(labels)) == {7, 255}
    assert (images[labels == 255] > 0).all()


def test_fill_values_that_somebody_chose_stay(build):
    image, label = picture()
    assert set(np.unique(apply(build(A.Pad(9, fill_mask=3, p=1)), image, np.full_like(label, 1))[1])) == {1, 3}
    holes, same = apply(build(A.CoarseDropout(fill=17, p=1)), image, label)  # whose fill_mask is None: labels stay
    assert (holes == 17).any()
    np.testing.assert_array_equal(same, label)


def test_labels_above_255_are_moved_as_they_are(build):
    image, label = picture(dtype=np.int32)
    _, out = apply(build(A.Rotate((90, 90), p=1), ignore_label=65535), image, label * 20000)
    assert set(np.unique(out)) == {20000, 40000, 60000, 65535}


def test_random_numbers_come_from_numpy_and_are_independent(build):
    image, label = picture()
    pipeline = build(A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5))
    seen = []
    for seed in [*range(60), *range(60)]:
        np.random.seed(seed)
        out = apply(pipeline, image, label)[1]
        flips = [label, label[:, ::-1], label[::-1], label[::-1, ::-1]]
        seen.append([np.array_equal(out, flip) for flip in flips].index(True))
    assert seen[:60] == seen[60:]
    assert min(np.bincount(seen[:60], minlength=4)) >= 6  # 15 of each are expected


@pytest.mark.parametrize(("order", "channel"), [("RGB", 0), ("BGR", 2)])
def test_the_pipeline_sees_rgb(build, order, channel):
    image, label = picture()
    pipeline = build(A.RGBShift((50, 50), (0, 0), (0, 0), p=1), image_format=order)
    change = apply(pipeline, image, label)[0].astype(int) - image
    assert (change[..., channel] == 50).all() and abs(change).sum() == abs(change[..., channel]).sum()


def test_the_config_puts_it_last(build, tmp_path):
    build(A.Resize(30, 50, p=1), A.HorizontalFlip(p=1))
    options = ["INPUT.ALBUMENTATIONS", str(tmp_path / "pipeline.yaml"), "INPUT.CROP.ENABLED", True]
    cfg = load_config("", [*options, "INPUT.CROP.SIZE", [64, 80], "INPUT.BLUR.PROB", 1.0])
    *others, last = build_train_augmentation(cfg, 7)
    assert len(others) >= 2 and isinstance(last, AlbumentationsPipeline)
    assert "HorizontalFlip" in repr(last) and "pipeline.yaml" in repr(last)
    image, label = picture()
    aug_input = T.AugInput(image, sem_seg=label)
    T.AugmentationList([*others, last])(aug_input)
    assert aug_input.image.shape == (30, 50, 3) and aug_input.sem_seg.shape == (30, 50)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "[1, 2",
        "\x00",
        "transform: {__class_fullname__: Nothing, p: 1}",
        "transform: {__class_fullname__: Rotate, limit: wide, p: 1}",
        "transform: {__class_fullname__: Compose, transform: []}",
        "transform: {__class_fullname__: Compose, transforms: 3}",
    ],
)
def test_files_that_hold_no_pipeline(tmp_path, text):
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^INPUT.ALBUMENTATIONS .*pipeline.yaml holds no pipeline .*save") as raised:
        AlbumentationsPipeline(str(path))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing():
    with pytest.raises(FileNotFoundError, match=r"^INPUT.ALBUMENTATIONS nowhere.yaml: there is no such file"):
        AlbumentationsPipeline("nowhere.yaml")


def test_the_file_may_be_in_the_home(build, tmp_path, monkeypatch):
    build(A.HorizontalFlip(p=1))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert AlbumentationsPipeline("~/pipeline.yaml").file == str(tmp_path / "pipeline.yaml")


def test_labels_are_never_mixed(build):
    with pytest.raises(ValueError, match="mask_interpolation of Affine is 1.* expected 0"):
        build(A.OneOf([A.Affine(rotate=(40, 40), mask_interpolation=1)]))


@pytest.mark.parametrize(
    "transform", [A.Normalize(p=1), A.ToFloat(p=1), A.ToTensorV2(p=1), A.ToGray(1, p=1)], ids=lambda x: str(x)[:9]
)
def test_images_have_to_stay_what_they_are(build, transform):
    pipeline = build(transform)
    with pytest.raises(ValueError, match=r"pipeline.yaml makes a (ndarray|Tensor) of .*expected an array of uint8"):
        apply(pipeline, *picture())


def test_a_pipeline_that_does_not_fit_the_image(build):
    pipeline = build(A.RandomCrop(100, 100, p=1))
    with pytest.raises(ValueError, match=r"pipeline.yaml cannot be applied to an image of 48 x 64 pixels .*: CropSize"):
        apply(pipeline, *picture())

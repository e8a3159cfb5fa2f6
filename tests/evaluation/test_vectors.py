import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from PIL import Image
from tiny_models import small_model
from torch.nn import functional as F

from d2_contrast.evaluation import LabelledVectors, balance, sample_features, sample_vectors


def test_every_image_gives_a_class_a_bounded_number():
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.choice([0, 1, 2, 255], (64, 64), p=[0.8, 0.1, 0.05, 0.05]))
    maps = [({"a": torch.randn(1, 5, 16, 16), "b": torch.randn(1, 5, 2, 2)}, label)] * 30
    points = sample_vectors(maps, {"a": 4, "b": 32}, per_image=8)
    counts = np.zeros((30, 3), int)
    np.add.at(counts, (points["a"].images, points["a"].classes), 1)
    assert (counts[:, 0] == 8).all() and counts.max() == 8 and counts.min() > 0
    assert 0 < len(points["b"]) <= 30 * 4

    balanced = balance(points["a"], 90)
    assert balanced.vectors.shape == (90, 5) and np.bincount(balanced.classes).tolist() == [30, 30, 30]


def test_more_classes_than_vectors():
    points = LabelledVectors(np.zeros((100, 2)), np.repeat(np.arange(50), 2), np.zeros(100))
    chosen = balance(points, 20)
    assert len(np.unique(chosen.classes)) == len(chosen) == 20


def test_vectors_keep_class_and_image():
    # The feature is the label itself and the image's number, on images that were padded from 24 x 40 to 32 x 64.
    maps = []
    for image in range(3):
        label = torch.randint(0, 4, (6, 10), generator=torch.Generator().manual_seed(image))
        feature = torch.full((1, 2, 8, 16), -1.0)
        feature[0, 0, :6, :10] = label
        feature[0, 1] = image
        maps.append(({"a": feature}, label.repeat_interleave(4, 0).repeat_interleave(4, 1)))
    points = sample_vectors(maps, {"a": 4})["a"]
    assert len(points) > 100
    assert (points.vectors == np.stack([points.classes, points.images], 1)).all()


def test_maps_of_equal_stride_are_seen_at_the_same_positions():
    label = torch.randint(0, 3, (60, 61), generator=torch.Generator().manual_seed(0))
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None]
    wider = F.pad(grid, (0, 4, 0, 2), value=-1)  # another network pads more
    alone = sample_vectors([({"x": grid}, label)], {"x": 4}, per_image=5)["x"]
    both = sample_vectors([({"coarse": grid[:, :, ::2, ::2], "y": wider}, label)], {"coarse": 8, "y": 4}, per_image=5)
    np.testing.assert_array_equal(alone.vectors, both["y"].vectors)
    other = sample_vectors([({"x": grid}, label)], {"x": 4}, per_image=5, seed=1)["x"]
    assert not np.array_equal(alone.vectors, other.vectors)


def test_an_image_smaller_than_a_stride_has_one_position():
    points = sample_vectors([({"a": torch.ones(1, 3, 1, 1)}, torch.full((5, 7), 2))], {"a": 32})["a"]
    assert points.classes.tolist() == [2]


def test_ignored_labels_give_nothing():
    points = sample_vectors([({"a": torch.ones(1, 3, 4, 4)}, torch.full((16, 16), 255))], {"a": 4})["a"]
    assert len(points) == 0 and points.vectors.shape == (0, 3) and len(balance(points, 10)) == 0


def test_concatenated_maps_are_seen_with_their_projector(tmp_path):
    contrast = {"IN_FEATURES": ["p2+p3"], "SCALE_WEIGHTS": [1.0], "CROSS_SCALE_PAIRS": [], "CROSS_SCALE_WEIGHTS": []}
    keys = {f"MODEL__CONTRAST__{key}": value for key, value in contrast.items()}
    model = small_model("cityscapes/uper_r101_contrast_bs12_120k.yaml", **keys).eval()
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1) % 5).save(tmp_path / "a.png")
    metadata = Metadata(name="x", stuff_classes=list("abcde"), ignore_label=255)
    dicts = [{"sem_seg_file_name": str(tmp_path / "a.png")}]
    raw, projected = sample_features(model, lambda _: {"image": image}, dicts, metadata, ["p2+p3", "p4"])
    assert list(raw) == ["p2+p3", "p4"] and list(projected) == ["p2+p3"]
    with torch.no_grad():
        maps = model.backbone((image[None] - model.pixel_mean) / model.pixel_std)
        larger = F.interpolate(maps["p3"], scale_factor=2, mode="bilinear", align_corners=False)
        vectors = torch.cat([maps["p2"], larger], 1)[0].flatten(1).t()
        found = torch.from_numpy(raw["p2+p3"].vectors)
        assert len(found) > 20 and torch.cdist(found.double(), vectors.double()).amin(1).max() < 1e-4
        expected = F.normalize(model.contrast.projectors["p2+p3"].project_vectors(found))
    np.testing.assert_allclose(projected["p2+p3"].vectors, expected, rtol=1e-3, atol=1e-5)


def test_values_that_are_not_finite_are_refused():
    feature = torch.ones(1, 3, 4, 4)
    feature[0, 1] = torch.nan
    with pytest.raises(ValueError, match="feature map res3 holds values that are not finite"):
        sample_vectors([({"res3": feature}, torch.zeros(16, 16, dtype=torch.int64))], {"res3": 4})


def test_arrays_must_fit():
    with pytest.raises(ValueError, match=r"vectors \(P, D\)"):
        LabelledVectors(np.zeros((3, 2)), np.zeros(3), np.zeros(2))

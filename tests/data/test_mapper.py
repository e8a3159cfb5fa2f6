import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.data import transforms as T
from PIL import Image

from d2_contrast.data import SemSegMapper
from d2_contrast.data.augmentation import RandomScaleCrop


@pytest.fixture
def sample(tmp_path):
    rng = np.random.RandomState(0)
    Image.fromarray(rng.randint(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(rng.randint(1, 4, (20, 30), np.uint8)).save(tmp_path / "label.png")
    return {
        "dataset_name": "toy",
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
    }


def mapper(is_train=True, augmentations=()):
    first = Metadata(name="first").set(stuff_classes=list("abcd"))
    toy = Metadata(name="toy").set(stuff_classes=list("ab"), label_encodings={"raw": {0: 255, 1: 0, 2: 1, 3: 255}})
    return SemSegMapper(
        is_train,
        augmentations=list(augmentations),
        image_format="RGB",
        metadata={"first": first, "toy": toy},
    )


def test_training_sample(sample):
    before = dict(sample)
    out = mapper()(sample)
    assert sample == before
    image = np.asarray(Image.open(sample["file_name"]))
    label = np.asarray(Image.open(sample["sem_seg_file_name"]))
    assert out["image"].dtype == torch.uint8 and out["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(out["image"].numpy(), image.transpose(2, 0, 1))
    np.testing.assert_array_equal(out["sem_seg"].numpy(), np.array([255, 0, 1, 255])[label])
    assert (out["height"], out["width"]) == (20, 30)
    assert out["sem_seg_file_name"] == sample["sem_seg_file_name"]


def test_sample_that_does_not_say_its_dataset(sample):
    """With one dataset there is no doubt; with several there is, and no guess is made."""
    alone = mapper()
    alone.metadata = {"toy": alone.metadata["toy"]}
    expected = alone(sample)["sem_seg"]
    del sample["dataset_name"]
    assert torch.equal(alone(sample)["sem_seg"], expected)
    for name in (None, "another"):
        with pytest.raises(ValueError, match=rf"image\.png: the 'dataset_name' .* is {name!r}.*\['first', 'toy'\]"):
            mapper()({**sample, "dataset_name": name})


def test_image_and_label_move_together(sample, tmp_path):
    label = np.asarray(Image.open(sample["sem_seg_file_name"]))
    Image.fromarray(np.repeat(label[..., None] * 60, 3, axis=2)).save(sample["file_name"])
    np.random.seed(0)
    apply = mapper(augmentations=[RandomScaleCrop(crop_size=(25, 25)), T.RandomFlip()])
    for _ in range(10):
        out = apply(sample)
        assert out["image"].shape == (3, 25, 25) and out["sem_seg"].shape == (25, 25)
        raw = out["image"][0].numpy() // 60
        np.testing.assert_array_equal(np.array([255, 0, 1, 255])[raw], out["sem_seg"].numpy())


def test_flipped_image_of_one_pixel(sample):
    """NumPy calls a flipped array contiguous if it is one pixel wide, although its stride is negative."""
    out = mapper(augmentations=[T.Resize((1, 1)), T.RandomFlip(prob=1.0)])(sample)
    assert out["image"].shape == (3, 1, 1) and out["sem_seg"].shape == (1, 1)


def test_same_seed_same_sample(sample):
    apply = mapper(augmentations=[RandomScaleCrop((0.5, 2.0), crop_size=(16, 16)), T.RandomFlip()])
    outs = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        outs.append(apply(sample)["image"])
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_inference_reads_no_label(sample):
    sample["sem_seg_file_name"] = "nowhere.png"
    out = mapper(is_train=False)(sample)
    assert out["image"].shape == (3, 20, 30) and "sem_seg" not in out
    assert out["sem_seg_file_name"] == "nowhere.png"


def test_sizes_that_differ_are_an_error(sample, tmp_path):
    Image.new("L", (31, 20)).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"image\.png has 20 x 30 .*label\.png has 20 x 31"):
        mapper()(sample)


def test_missing_files_are_named(sample):
    for key in ("file_name", "sem_seg_file_name"):
        with pytest.raises(FileNotFoundError, match="gone.png"):
            mapper()({**sample, key: "gone.png"})


def test_training_without_label_is_an_error(sample):
    del sample["sem_seg_file_name"]
    with pytest.raises(ValueError, match=r"image\.png.*no label"):
        mapper()(sample)


def test_wrong_label_value_is_an_error(sample, tmp_path):
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"label\.png: label value 9 .*expected 0\.\.3"):
        mapper()(sample)

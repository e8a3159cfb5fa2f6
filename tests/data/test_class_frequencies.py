import errno
import os
from collections import Counter
from itertools import islice

import miniatures
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from PIL import Image

from d2_contrast.config import default_config
from d2_contrast.data import build_test_loader, build_train_loader, count_label_pixels, repeat_factors


@pytest.fixture(autouse=True)
def seed():
    seed_all_rng(0)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Four label maps of three classes; class 2 is in one of them, 255 is ignored."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = []
    for i, label in enumerate(([[0, 0, 1]], [[0, 255, 0]], [[0, 1, 2]], [[0, 1, 1]])):
        Image.fromarray(np.array(label, np.uint8)).save(tmp_path / f"{i}.png")
        Image.new("RGB", (3, 1)).save(tmp_path / f"{i}.jpg")
        records.append({"file_name": str(tmp_path / f"{i}.jpg"), "sem_seg_file_name": str(tmp_path / f"{i}.png")})
    DatasetCatalog.register("toy", lambda: records)
    MetadataCatalog.get("toy").set(stuff_classes=["a", "b", "c"])
    yield records
    DatasetCatalog.remove("toy")
    MetadataCatalog.remove("toy")


COUNTS = [[2, 1, 0], [2, 0, 0], [1, 1, 1], [1, 2, 0]]


def test_pixels_are_counted_and_remembered(toy, tmp_path, monkeypatch):
    np.testing.assert_array_equal(count_label_pixels("toy", toy), COUNTS)
    assert len(list((tmp_path / ".label_counts").glob("*.npy"))) == 1
    monkeypatch.setattr("d2_contrast.data.class_frequencies._count", None)  # would fail
    np.testing.assert_array_equal(count_label_pixels("toy", toy), COUNTS)


def test_changed_labels_are_counted_again(toy):
    count_label_pixels("toy", toy)
    path = toy[1]["sem_seg_file_name"]
    Image.fromarray(np.array([[2, 2, 2]], np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(count_label_pixels("toy", toy)[1], [0, 0, 3])


def test_a_class_more_is_counted_even_without_a_label_value(toy):
    for names in "abc", "abcd":
        MetadataCatalog.remove("toy")
        MetadataCatalog.get("toy").set(stuff_classes=[*names], label_encodings={"raw": {0: 0, 1: 1, 2: 2, 255: 255}})
        np.testing.assert_array_equal(count_label_pixels("toy", toy), [row + [0] * (len(names) - 3) for row in COUNTS])


@pytest.mark.parametrize("error", [PermissionError(), OSError(errno.EROFS, "Read-only file system")])
def test_read_only_folder_is_no_obstacle(toy, monkeypatch, caplog, error):
    def refuse(path):
        raise error

    monkeypatch.setattr("d2_contrast.data.class_frequencies.file_lock", refuse)
    np.testing.assert_array_equal(count_label_pixels("toy", toy), COUNTS)
    assert "cannot be written" in caplog.text


def test_name_with_slashes(toy, tmp_path):
    for name in ("a/b", "../c"):
        MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"])
        np.testing.assert_array_equal(count_label_pixels(name, toy), COUNTS)
        MetadataCatalog.remove(name)
    assert len(list((tmp_path / ".label_counts").glob("*.npy"))) == 2


def test_label_that_is_missing_is_named(toy, tmp_path):
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png: no such label map"):
        count_label_pixels("toy", toy)


def test_labels_that_cannot_be_used_may_be_skipped(toy, caplog):
    """They count as without pixels. The error is not hidden where they may not, nor a label that was mended."""
    path = toy[2]["sem_seg_file_name"]
    os.rename(path, f"{path}.aside")
    for _ in range(2):
        caplog.clear()
        np.testing.assert_array_equal(count_label_pixels("toy", toy, skip=True), [*COUNTS[:2], [0, 0, 0], COUNTS[3]])
        assert f"1 label maps of toy cannot be used and count as without pixels, one of them: {path}" in caplog.text
        with pytest.raises(FileNotFoundError, match=r"2\.png: no such label map"):
            count_label_pixels("toy", toy)
    os.rename(f"{path}.aside", path)
    np.testing.assert_array_equal(count_label_pixels("toy", toy, skip=True), COUNTS)


def test_class_that_is_ignored_counts_nowhere(toy):
    MetadataCatalog.remove("toy")
    MetadataCatalog.get("toy").set(
        stuff_classes=["a", "b", "c"], ignore_label=0, label_encodings={"raw": {0: 0, 1: 1, 2: 2, 255: 0}}
    )
    np.testing.assert_array_equal(count_label_pixels("toy", toy), np.array(COUNTS) * [0, 1, 1])


def test_dataset_without_labels_is_an_error(toy):
    del toy[2]["sem_seg_file_name"]
    with pytest.raises(ValueError, match=r"2\.jpg of dataset 'toy' has no label"):
        count_label_pixels("toy", toy)


@pytest.mark.parametrize("sqrt", [True, False])
def test_repeat_factors_equal_the_hand_computed_ones(sqrt):
    # Shares of images: class a 1, class b 3/4, class c 1/4. With a threshold of 1: 1, 4/3 and 4, or their roots.
    factors = repeat_factors(np.array(COUNTS), threshold=1.0, sqrt=sqrt)
    np.testing.assert_allclose(factors, np.array([4 / 3, 1, 4, 4 / 3]) ** (0.5 if sqrt else 1), rtol=1e-6)


def test_cadis_factors_equal_the_published_frequencies():
    """Task 2: a class in 237 of 3550 frames has the factor sqrt(0.15 * 3550 / 237) = 1.4990."""
    counts = np.zeros((3550, 2), np.int64)
    counts[:, 0] = 9
    counts[:237, 1] = 1
    factors = repeat_factors(counts, threshold=0.15)
    np.testing.assert_allclose(factors[:237], 1.4990, atol=1e-4)
    assert (factors[237:] == 1).all()


def loader_config(train=(), test=(), **keys):
    cfg = default_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.merge_from_list([x for kv in keys.items() for x in kv])
    return cfg


def test_train_loader_repeats_rare_classes(toy):
    cfg = loader_config(("toy",))
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    for sqrt, ratio in ((True, 2), (False, 4)):
        drawn = Counter(s["file_name"][-5] for batch in islice(build_train_loader(cfg), 500) for s in batch)
        assert drawn["2"] / drawn["1"] == pytest.approx(ratio, rel=0.15), sqrt
        cfg.DATALOADER.REPEAT_SQRT = False  # which newer versions of Detectron2 have


def test_loaders_from_a_config(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    miniatures.cityscapes(tmp_path)
    miniatures.cadis(tmp_path)
    cfg = loader_config(("cityscapes_19_train", "cityscapes_19_val"), ("cityscapes_19_val", "cityscapes_19_test"))
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [48, 96]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_JITTER.ENABLED = True
    cfg.INPUT.BLUR.PROB = 1.0
    seen = set()
    for batch in islice(build_train_loader(cfg), 12):
        for sample in batch:
            assert sample["image"].shape == (3, 48, 96) and sample["sem_seg"].shape == (48, 96)
            assert set(sample["sem_seg"].unique().tolist()) <= {0, 1, 2, 8, 10, 11, 13, 18, 255}
            seen.add(sample["file_name"])
    assert len(seen) == 6  # both datasets
    sizes = [(b[0]["image"].shape, b[0]["height"]) for b in build_test_loader(cfg, "cityscapes_19_val")]
    assert sizes == [((3, 64, 128), 64)] * 2
    cfg.INPUT.MIN_SIZE_TEST = 32
    sizes = [(b[0]["image"].shape, b[0]["height"]) for b in build_test_loader(cfg, "cityscapes_19_test")]
    assert sizes == [((3, 32, 64), 64)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_is_deterministic_under_a_seed(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    miniatures.cadis(tmp_path)
    cfg = loader_config(("cadis_task2_train",))
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [32, 32]
    cfg.DATALOADER.NUM_WORKERS = workers
    runs = []
    for seed in (5, 5, 6):
        seed_all_rng(seed)
        batches = list(islice(build_train_loader(cfg), 3))
        runs.append([s["image"].numpy().tobytes() for batch in batches for s in batch])
    assert runs[0] == runs[1] != runs[2]

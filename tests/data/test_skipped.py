import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_contrast.config import default_config
from d2_contrast.data import SemSegMapper, build_train_loader
from d2_contrast.data.skipped import MAX_IN_ROW, SKIPPED, SkippedSamples
from d2_contrast.engine.preflight import check_dataset
from d2_contrast.errors import explain


@pytest.fixture
def cfg(tmp_path):
    """Of a dataset of five samples, of which 1 has a damaged image and 3 a label of another size."""
    for i in range(5):
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(tmp_path / f"{i}.jpg")
        Image.fromarray(np.zeros((8, 9 - (i == 3)), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.jpg").write_bytes(b"damaged")
    samples = [
        {"file_name": str(tmp_path / f"{i}.jpg"), "sem_seg_file_name": str(tmp_path / f"{i}.png")} for i in range(5)
    ]
    name = f"skipped_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
    cfg = default_config()
    cfg.merge_from_list(["DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", str(tmp_path / "output")])
    yield cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def draw(cfg, batches: int = 15) -> set[str]:
    """The files that a loader gives."""
    loader = iter(build_train_loader(cfg))
    return {sample["file_name"][-5:] for _ in range(batches) for sample in next(loader)}


@pytest.mark.parametrize("workers", [0, 2])
def test_skip(cfg, tmp_path, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.ON_ERROR = "skip"
    assert draw(cfg) == {"0.jpg", "2.jpg", "4.jpg"}
    notes = [json.loads(line) for line in (tmp_path / "output" / SKIPPED).read_text().splitlines()]
    assert {note["file_name"][-5:] for note in notes} == {"1.jpg", "3.jpg"}
    text = SkippedSamples(cfg.OUTPUT_DIR).describe()
    assert text.startswith(f"2 training samples could not be used and were skipped, {len(notes)} times:\n  ")
    assert "1.jpg: cannot read this image (7 bytes)" in text and "image and label differ in size" in text
    with open(tmp_path / "output" / SKIPPED, "a") as file:
        file.write('{"file_name": "/a')  # the process was killed
    assert SkippedSamples(cfg.OUTPUT_DIR).describe() == text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_named(cfg, tmp_path, workers):
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ON_ERROR = workers, "skip"
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / SKIPPED).symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        draw(cfg)
    assert explain(raised.value) == f"{tmp_path}/output/{SKIPPED}: cannot write this file (No space left on device)"


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"])
def test_skip_where_the_sampler_counts_labels(cfg, tmp_path, monkeypatch, sampler):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "4.png").write_bytes(b"damaged")
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.SAMPLER_TRAIN = 0, sampler
    with pytest.raises(OSError, match="4.png: cannot read"):
        draw(cfg)
    cfg.DATALOADER.ON_ERROR = "skip"
    assert draw(cfg) == {"0.jpg", "2.jpg"}


def test_raise_is_the_default(cfg, tmp_path):
    cfg.DATALOADER.NUM_WORKERS = 0
    with pytest.raises((OSError, ValueError), match="1.jpg: cannot read|differ in size"):
        draw(cfg)
    assert SkippedSamples(cfg.OUTPUT_DIR).describe() == "" and not (tmp_path / "output").exists()


def test_test_images_are_never_skipped(cfg):
    cfg.DATASETS.TEST, cfg.DATALOADER.ON_ERROR = cfg.DATASETS.TRAIN, "skip"
    with pytest.raises(OSError, match="1.jpg: cannot read"):
        SemSegMapper(cfg, is_train=False)(DatasetCatalog.get(cfg.DATASETS.TEST[0])[1])


def test_too_many_in_a_row_are_an_error(tmp_path):
    skipped = SkippedSamples(str(tmp_path))
    for _ in range(2):
        for _ in range(MAX_IN_ROW - 1):
            skipped.add("a.png", ValueError("a.png is bad"))
        skipped.note_success()
    assert skipped.describe().startswith(
        f"1 training samples could not be used and were skipped, {2 * MAX_IN_ROW - 2} "
    )
    with pytest.raises(ValueError, match=f"{MAX_IN_ROW} training samples in a row .*the last: a.png is bad"):
        for _ in range(MAX_IN_ROW):
            skipped.add("a.png", ValueError("a.png is bad"))


def test_the_look_at_data_before_a_run_goes_by_the_same_rule(cfg, tmp_path, caplog):
    (name,) = cfg.DATASETS.TRAIN
    (tmp_path / "4.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files are missing"):
        check_dataset(name, is_train=True)
    check_dataset(name, is_train=True, skip=True)
    assert "4.png" in caplog.text and "1.jpg: cannot read" in caplog.text
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="0.jpg: cannot read"):
        check_dataset(name, is_train=True, skip=True)

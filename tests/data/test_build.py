"""Loaders of several datasets: each sample is decoded by its own."""

from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_contrast.config import default_config
from d2_contrast.data import build_test_loader, build_train_loader, load_dicts

ENCODINGS = {"plain": {0: 0, 1: 1, 255: 255}, "swapped": {0: 1, 1: 0, 7: 255}}


@pytest.fixture
def two_sets(tmp_path):
    """Two datasets without ``dataset_name``: the values 0 and 1 of one mean what 1 and 0 of the other do."""
    made = {}
    for name, table in ENCODINGS.items():
        raw = np.array([[0, 1], [1, max(table)]], np.uint8)
        Image.fromarray(raw).save(tmp_path / f"{name}.png")
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.jpg")
        dicts = [{"file_name": f"{tmp_path}/{name}.jpg", "sem_seg_file_name": f"{tmp_path}/{name}.png"}]
        made[name] = dicts
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
        MetadataCatalog.get(name).set(stuff_classes=["a", "b"], label_encodings={"raw": table})
    yield made
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(**datasets):
    cfg = default_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = datasets.get("train", ()), datasets.get("test", ())
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


@pytest.mark.parametrize("order", [("plain", "swapped"), ("swapped", "plain")])
def test_each_sample_is_decoded_by_its_own_dataset(two_sets, order):
    cfg = config(train=order)
    cfg.INPUT.RANDOM_FLIP = "none"
    expected = {"plain": [[0, 1], [1, 255]], "swapped": [[1, 0], [0, 255]]}
    seen = set()
    for batch in islice(build_train_loader(cfg), 8):
        for sample in batch:
            seen.add(sample["dataset_name"])
            assert sample["sem_seg"].tolist() == expected[sample["dataset_name"]]
    assert seen == set(order)
    assert all("dataset_name" not in d for dicts in two_sets.values() for d in dicts)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("grouping", [False, True])
def test_batches_are_the_same_with_any_number_of_workers(two_sets, grouping):
    cfg = config(train=tuple(two_sets))
    cfg.SEED, cfg.DATALOADER.ASPECT_RATIO_GROUPING = 0, grouping
    drawn = []
    for cfg.DATALOADER.NUM_WORKERS in 0, 2, 3:
        drawn.append([sample["dataset_name"] for batch in islice(build_train_loader(cfg), 12) for sample in batch])
    assert drawn[0] == drawn[1] == drawn[2] and sorted(drawn[0]) == ["plain"] * 12 + ["swapped"] * 12


def test_samples_for_testing_know_their_dataset(two_sets):
    for name in two_sets:
        ((sample,),) = build_test_loader(config(test=tuple(two_sets)), name)
        assert sample["dataset_name"] == name


def test_dataset_that_passes_on_the_dicts_of_another(two_sets):
    DatasetCatalog.register("subset", lambda: load_dicts("plain"))
    try:
        assert load_dicts("subset") == [{**two_sets["plain"][0], "dataset_name": "subset"}]
    finally:
        DatasetCatalog.remove("subset")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stuff_classes": ["b", "a"]}, "class 0 is 'a' in dataset 'plain' and 'b' in dataset 'swapped'"),
        ({"ignore_label": 254}, "'swapped'.*value 7 means the train id 255, expected 0 to 1, or 254"),
    ],
)
def test_datasets_that_do_not_go_together(two_sets, changes, message):
    vars(MetadataCatalog.get("swapped")).update(changes)
    with pytest.raises(ValueError, match=message):
        build_train_loader(config(train=("plain", "swapped")))


@pytest.mark.parametrize(
    ("dicts", "message"),
    [
        ([], "'odd' has no images"),
        ([{"image": "x.jpg"}], r"'odd': image 0 is \{'image': 'x.jpg'\}, expected a dict with 'file_name'"),
        ([{"file_name": "x.jpg"}, "y.jpg"], "'odd': image 1 is 'y.jpg', expected a dict"),
    ],
)
def test_dicts_that_are_none(dicts, message):
    DatasetCatalog.register("odd", lambda: dicts)
    try:
        with pytest.raises(ValueError, match=message):
            load_dicts("odd")
    finally:
        DatasetCatalog.remove("odd")


def test_no_dataset_to_train_on():
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_train_loader(config())

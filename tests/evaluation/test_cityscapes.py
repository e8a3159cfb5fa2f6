"""Cityscapes' metrics against cityscapesScripts' own evaluation of the same files."""

import copy

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from d2_contrast.config import default_config
from d2_contrast.data.datasets.cityscapes import CLASSES, LABEL_ENCODINGS
from d2_contrast.evaluation import CityscapesEvaluator, ConfusionEvaluator, build_evaluator

RAW_IDS = np.array([raw for raw, *_ in CLASSES])
NAMES = [name for _, name, *_ in CLASSES]


def write(path, array):
    Image.fromarray(array).save(path)
    return str(path)


@pytest.fixture
def city(tmp_path):
    """Three images in Cityscapes' format: dataset name, dicts, predictions by train id, and their files by raw id.

    Every raw id occurs but 31 (train), which is only predicted, and 16 (tunnel); two classes are never predicted.
    There are instances of each class, of ignored classes, and groups.
    """
    rng = np.random.default_rng(0)
    raw_ids = [i for i in range(34) if i not in (31, 16)]
    predictable = [i for i in range(19) if NAMES[i] not in ("rider", "wall")]
    dicts, predictions, files = [], [], []
    for i in range(3):
        blocks = rng.choice(raw_ids, (12, 16))
        number = rng.integers(0, 6, blocks.shape)
        has_instances = np.isin(blocks, [24, 25, 26, 27, 28, 29, 30, 31, 32, 33])
        # Number 0 stands for a group, which keeps the id of its class.
        instances = np.where(has_instances & (number > 0), blocks * 1000 + number, blocks)
        big = np.ones((5, 7), int)
        raw, instances = np.kron(blocks, big), np.kron(instances, big)
        train = np.vectorize(LABEL_ENCODINGS["labelIds"].get)(raw)
        guess = rng.choice(predictable, raw.shape)
        right = (train != 255) & np.isin(train, predictable) & (rng.random(raw.shape) < 0.7)
        guess = np.where(right, train, guess)

        stem = f"ulm_{i:06d}_000019"
        label = write(tmp_path / f"{stem}_gtFine_labelIds.png", raw.astype(np.uint8))
        write(tmp_path / f"{stem}_gtFine_instanceIds.png", instances.astype(np.uint16))
        dicts.append({"file_name": f"{stem}_leftImg8bit.png", "sem_seg_file_name": label})
        predictions.append(guess)
        files.append(write(tmp_path / f"{stem}_pred.png", RAW_IDS[guess].astype(np.uint8)))
    name = "mini_city"
    DatasetCatalog.register(name, lambda: dicts)
    set_metadata(name)
    yield name, dicts, predictions, files
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def set_metadata(name):
    MetadataCatalog.get(name).set(
        stuff_classes=NAMES,
        label_encodings={"labelIds": LABEL_ENCODINGS["labelIds"]},
        evaluator_type="cityscapes_sem_seg",
    )


@pytest.fixture
def reference(city, monkeypatch):
    """What cityscapesScripts makes of the files."""
    if not hasattr(np, "in1d"):  # cityscapesScripts calls it; NumPy 2.4 removed it
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    args = copy.copy(official.args)
    args.quiet, args.JSONOutput = True, False
    _, dicts, _, files = city
    return official.evaluateImgLists(files, [d["sem_seg_file_name"] for d in dicts], args)


def run(evaluator, dicts, predictions):
    evaluator.reset()
    for d, prediction in zip(dicts, predictions):
        evaluator.process([d], [{"sem_seg": torch.from_numpy(prediction)}])
    return evaluator.evaluate()["sem_seg"]


def test_every_figure_agrees(city, reference):
    name, dicts, predictions, _ = city
    result = run(CityscapesEvaluator(name), dicts, predictions)
    expected = {
        "mIoU": reference["averageScoreClasses"],
        "iIoU": reference["averageScoreInstClasses"],
        "IoU_sup": reference["averageScoreCategories"],
        "iIoU_sup": reference["averageScoreInstCategories"],
    }
    expected.update({f"IoU-{n}": reference["classScores"][n] for n in NAMES})
    instance_classes = [n for n, v in reference["classInstScores"].items() if not np.isnan(v)]
    assert len(instance_classes) == 8
    expected.update({f"iIoU-{n}": reference["classInstScores"][n] for n in instance_classes})
    expected.update({f"IoU_sup-{n}": v for n, v in reference["categoryScores"].items()})
    expected.update({f"iIoU_sup-{n}": reference["categoryInstScores"][n] for n in ("human", "vehicle")})
    for key, value in expected.items():
        assert result[key] == pytest.approx(100 * value, abs=1e-9, nan_ok=True), key
    assert result["IoU-train"] == 0 and result["mIoU"] > 20


def test_the_confusion_matrix_agrees(city, reference):
    name, dicts, predictions, _ = city
    evaluator = CityscapesEvaluator(name)
    run(evaluator, dicts, predictions)
    theirs = np.array(reference["confMatrix"])[np.ix_(RAW_IDS, RAW_IDS)]
    np.testing.assert_array_equal(evaluator.confusion, theirs)


def test_train_id_labels_give_the_same(city, tmp_path):
    name, dicts, predictions, _ = city
    before = run(CityscapesEvaluator(name), dicts, predictions)
    table = np.array([LABEL_ENCODINGS["labelIds"].get(i, 255) for i in range(256)], np.uint8)
    for d in dicts:
        raw = np.array(Image.open(d["sem_seg_file_name"]))
        d["sem_seg_file_name"] = d["sem_seg_file_name"].replace("labelIds", "labelTrainIds")
        write(d["sem_seg_file_name"], table[raw])
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=NAMES)
    assert run(CityscapesEvaluator(name), dicts, predictions) == pytest.approx(before, nan_ok=True)


def test_without_instance_files_the_rest_is_computed(city, tmp_path, caplog):
    name, dicts, predictions, _ = city
    before = run(CityscapesEvaluator(name), dicts, predictions)
    (tmp_path / "ulm_000001_000019_gtFine_instanceIds.png").unlink()
    result = run(CityscapesEvaluator(name), dicts, predictions)
    assert "1 labels have no *_instanceIds.png" in caplog.text and "ulm_000001" in caplog.text
    assert not any(key.startswith("iIoU") for key in result)
    assert result == pytest.approx({k: before[k] for k in result}, nan_ok=True)


def test_an_instance_file_of_another_size_is_named(city, tmp_path):
    name, dicts, predictions, _ = city
    write(tmp_path / "ulm_000000_000019_gtFine_instanceIds.png", np.zeros((4, 5), np.uint16))
    with pytest.raises(ValueError, match=r"ulm_000000_000019_gtFine_instanceIds.png.*\(4, 5\)"):
        run(CityscapesEvaluator(name), dicts, predictions)


def test_other_classes_are_refused(labelled_dataset):
    with pytest.raises(ValueError, match="'labelled_dataset'.*'tree', 'hat'"):
        CityscapesEvaluator("labelled_dataset")


def test_it_is_what_cityscapes_gets(city):
    assert type(build_evaluator(default_config(), "mini_city")) is CityscapesEvaluator
    for split in ("train", "val"):
        assert MetadataCatalog.get(f"cityscapes_19_{split}").evaluator_type == "cityscapes_sem_seg"


def test_processes_sum_their_counts(city, monkeypatch):
    name, dicts, predictions, _ = city
    alone = run(CityscapesEvaluator(name), dicts, predictions)
    sent = []
    monkeypatch.setattr(comm, "gather", lambda counts: sent.append(counts) or [counts])
    run(CityscapesEvaluator(name), dicts[:1], predictions[:1])
    monkeypatch.setattr(comm, "gather", lambda counts: [counts, sent.pop(0)])
    together = run(CityscapesEvaluator(name), dicts[1:], predictions[1:])
    assert together == pytest.approx(alone, rel=1e-12, nan_ok=True) and not sent


def test_means_come_from_the_same_matrix(city):
    name, dicts, predictions, _ = city
    plain = run(ConfusionEvaluator(name), dicts, predictions)
    result = run(CityscapesEvaluator(name), dicts, predictions)
    assert {k: result[k] for k in plain} == pytest.approx(plain, nan_ok=True)

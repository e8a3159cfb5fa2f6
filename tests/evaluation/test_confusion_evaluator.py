"""The evaluator against Detectron2's, scikit-learn's metrics, and itself in several processes."""

import json
import threading

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator, inference_on_dataset, print_csv_format
from processes import run_in_two_processes
from sklearn import metrics

from d2_contrast.data import read_label
from d2_contrast.evaluation import ConfusionEvaluator


def run(evaluator, dicts, labels, scores):
    evaluator.reset()
    for i, (d, label) in enumerate(zip(dicts, labels)):
        evaluator.process([d], [{"sem_seg": scores(label, i)}])
    return evaluator.evaluate()


def test_agrees_with_detectron2(labelled_dataset, scores):
    name, dicts, labels = labelled_dataset
    ours = run(ConfusionEvaluator(name), dicts, labels, scores)["sem_seg"]
    reference = SemSegEvaluator(
        name,
        distributed=False,
        sem_seg_loading_fn=lambda file_name, dtype: read_label(file_name, MetadataCatalog.get(name)).astype(dtype),
    )
    theirs = run(reference, dicts, labels, scores)["sem_seg"]
    common = [k for k in theirs if "Boundary" not in k and "B-Iou" not in k]
    assert {"mIoU", "fwIoU", "mACC", "pACC", "IoU-hat", "ACC-hat"} <= set(common)
    assert {k: ours[k] for k in common} == pytest.approx({k: theirs[k] for k in common}, rel=1e-12)


def test_groups_and_files(labelled_dataset, scores, tmp_path):
    name, dicts, labels = labelled_dataset
    evaluator = ConfusionEvaluator(name, str(tmp_path / "out"))
    result = run(evaluator, dicts, labels, scores)["sem_seg"]

    truth = np.concatenate([label.ravel() for label in labels])
    guess = np.concatenate([scores(x, i).argmax(0).numpy().ravel() for i, x in enumerate(labels)])
    truth, guess = truth[truth != 255], guess[truth != 255]
    iou = 100 * metrics.jaccard_score(truth, guess, average=None)
    assert result["mIoU-things"] == pytest.approx(iou[2:].mean())
    assert result["mIoU-rare"] == pytest.approx(iou[4])

    np.testing.assert_array_equal(evaluator.confusion, metrics.confusion_matrix(truth, guess))
    saved = np.load(tmp_path / "out" / "confusion_matrix.npz")
    np.testing.assert_array_equal(saved["confusion"], evaluator.confusion)
    assert saved["class_names"].tolist() == ["road", "tree", "person", "bus", "hat"]
    assert json.loads((tmp_path / "out" / "sem_seg_results.json").read_text()) == result


def test_class_ids_count_like_scores(labelled_dataset, scores):
    name, dicts, labels = labelled_dataset
    by_scores = run(ConfusionEvaluator(name), dicts, labels, scores)
    ids = run(ConfusionEvaluator(name), dicts, labels, lambda x, i: scores(x, i).argmax(0).to(torch.uint8))
    assert ids == by_scores


def test_runs_in_detectron2s_loop(labelled_dataset, scores, caplog):
    name, dicts, labels = labelled_dataset
    by_file = {d["file_name"]: label for d, label in zip(dicts, labels)}

    def model(inputs):
        return [{"sem_seg": scores(by_file[x["file_name"]])} for x in inputs]

    results = inference_on_dataset(model, [dicts[:2], dicts[2:]], ConfusionEvaluator(name))
    assert 50 < results["sem_seg"]["mIoU"] < 90
    with caplog.at_level("INFO"):
        print_csv_format(results)
    assert "mIoU,fwIoU,mACC,pACC" in caplog.text


def test_reset_forgets(labelled_dataset, scores):
    name, dicts, labels = labelled_dataset
    evaluator = ConfusionEvaluator(name)
    first = run(evaluator, dicts, labels, scores)
    assert run(evaluator, dicts, labels, scores) == first
    evaluator.reset()
    assert evaluator.confusion is None


def test_a_wrong_size_names_the_file(labelled_dataset, scores):
    name, dicts, labels = labelled_dataset
    for go_on in (
        lambda evaluator: evaluator.evaluate(),
        lambda evaluator: evaluator.process(dicts[1:2], [{"sem_seg": scores(labels[1])}]),
    ):
        evaluator = ConfusionEvaluator(name)
        evaluator.process(dicts[:1], [{"sem_seg": scores(labels[0])[..., :-1]}])
        with pytest.raises(ValueError, match=r"label_0.png: the prediction is 20 x 29 .* 20 x 30"):
            go_on(evaluator)


def test_counting_goes_on_beside_the_caller(labelled_dataset, scores, monkeypatch):
    """The first image is still being counted when the caller has the next one ready."""
    name, dicts, labels = labelled_dataset
    evaluator, counted = ConfusionEvaluator(name), threading.Event()
    next_is_ready = threading.Event()

    def count(prediction, label, label_file):
        assert next_is_ready.wait(timeout=60)
        counted.set()

    monkeypatch.setattr(evaluator, "count", count)
    evaluator.process(dicts[:1], [{"sem_seg": scores(labels[0])}])
    assert not counted.is_set()
    next_is_ready.set()
    evaluator.process(dicts[1:2], [{"sem_seg": scores(labels[1])}])
    assert counted.is_set()  # no more than one waits
    evaluator.gather()


def test_an_image_without_label_is_named(labelled_dataset, scores):
    name, dicts, labels = labelled_dataset
    with pytest.raises(ValueError, match="image_0.png: no label .*sem_seg_file_name"):
        ConfusionEvaluator(name).process([{"file_name": dicts[0]["file_name"]}], [{"sem_seg": scores(labels[0])}])


def test_metadata_that_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="'no_such_classes'.*stuff_classes"):
        ConfusionEvaluator("no_such_classes")


def test_classes_without_a_pixel_are_named(labelled_dataset, scores, caplog):
    name, dicts, labels = labelled_dataset
    with caplog.at_level("WARNING"):
        run(ConfusionEvaluator(name), dicts, labels, scores)
    assert not caplog.text
    for d, label in zip(dicts, labels):
        label[label == 3] = 255
        cv2.imwrite(d["sem_seg_file_name"], label)
    ignored = np.mean([(label == 255).mean() * label.size for label in labels]) / np.mean([x.size for x in labels])
    with caplog.at_level("WARNING"):
        run(ConfusionEvaluator(name), dicts, labels, scores)
    assert f"labels of {name} is of class 'bus' (1 of 5 classes), while {ignored:.1%} of all pixels" in caplog.text


def test_a_class_that_is_ignored_is_in_no_mean(labelled_dataset, scores, caplog):
    name, dicts, labels = labelled_dataset
    metadata = MetadataCatalog.get(name)
    vars(metadata).update(ignore_label=0, label_encodings={"raw": {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 255: 0}})
    with caplog.at_level("WARNING"):
        result = run(ConfusionEvaluator(name), dicts, labels, scores)["sem_seg"]
    assert not caplog.text  # the ignored class is not missed
    truth = np.concatenate([label.ravel() for label in labels])
    guess = np.concatenate([scores(x, i).argmax(0).numpy().ravel() for i, x in enumerate(labels)])
    counted = (truth != 255) & (truth != 0)
    iou = metrics.jaccard_score(truth[counted], guess[counted], labels=[1, 2, 3, 4], average=None)
    assert result["mIoU"] == pytest.approx(100 * iou.mean()) and np.isnan(result["IoU-road"])


def evaluate_share(rank, dataset, scores, out):
    name, dicts, labels = dataset
    MetadataCatalog.get(name).set(stuff_classes=["road", "tree", "person", "bus", "hat"])
    evaluator = ConfusionEvaluator(name, out)
    for i in range(rank, len(dicts), 2):
        evaluator.process([dicts[i]], [{"sem_seg": scores[i]}])
    results = evaluator.evaluate()
    assert (results is None) == (rank == 1)
    assert (evaluator.confusion is None) == (rank == 1)


def test_two_processes_sum_their_counts(labelled_dataset, scores, tmp_path):
    name, dicts, labels = labelled_dataset
    alone = ConfusionEvaluator(name)
    run(alone, dicts, labels, scores)
    all_scores = [scores(label, i) for i, label in enumerate(labels)]
    run_in_two_processes(evaluate_share, tmp_path, labelled_dataset, all_scores, str(tmp_path / "out"))
    saved = np.load(tmp_path / "out" / "confusion_matrix.npz")["confusion"]
    np.testing.assert_array_equal(saved, alone.confusion)

"""Confusion matrices and their metrics against scikit-learn and hand-computed cases."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from d2_contrast.evaluation import count_confusion, summarize_confusion
from d2_contrast.evaluation.metrics import argmax_classes

NAMES = [f"class {i}" for i in range(7)]


def random_maps(seed=0, size=(37, 53), classes=7, ignored=0.1):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size).astype(np.uint8)
    prediction = np.where(rng.random(size) < 0.6, label, rng.integers(0, classes, size))
    label[rng.random(size) < ignored] = 255
    return torch.from_numpy(prediction), torch.from_numpy(label)


def scores_with_ties(dtype=torch.float32, size=(7, 37, 53)):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-2, 3, size, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("positions", [1, 53, 200, 10**6])
def test_classes_of_scores_are_those_of_argmax(monkeypatch, dtype, positions):
    monkeypatch.setattr("d2_contrast.evaluation.metrics.POSITIONS_PER_BAND", positions)
    scores = scores_with_ties(dtype)
    assert (scores == scores.amax(0)).sum(0).max() > 1  # ties
    classes = argmax_classes(scores)
    assert classes.dtype == torch.int64 and torch.equal(classes, scores.argmax(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.requires_grad_(),
        lambda s: s[:, 3:-2, 5:],
        lambda s: s.flip(2)[:, ::2],
        lambda s: s.transpose(1, 2),
        lambda s: s.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        lambda s: s[:1],
        lambda s: s[:, :0],
        lambda s: s[:, :, :0],
        lambda s: torch.full_like(s, -torch.inf),
        lambda s: s.masked_fill(s == 2, torch.inf),
        lambda s: s.masked_fill(s == 0, torch.nan),
        lambda s: s.masked_fill(s == 0, -0.0),
        lambda s: torch.cat([s, s.new_zeros(300, *s.shape[1:])]),
    ],
)
def test_classes_of_any_scores(change):
    scores = change(scores_with_ties())
    assert torch.equal(argmax_classes(scores), scores.argmax(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_counts_equal_sklearn(dtype):
    prediction, label = random_maps()
    counts = count_confusion(prediction.to(dtype), label, 7)
    valid = label != 255
    truth = metrics.confusion_matrix(label[valid], prediction[valid], labels=range(7))
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, truth)


def test_the_largest_number_of_classes_and_another_ignore_label():
    prediction, label = random_maps(classes=255)
    counts = count_confusion(prediction, label, 255)
    valid = label != 255
    truth = metrics.confusion_matrix(label[valid], prediction[valid], labels=range(255))
    np.testing.assert_array_equal(counts, truth)

    prediction, label = random_maps(ignored=0)
    label[3:9] = 7
    counts = count_confusion(prediction, label, 7, ignore_label=7)
    assert counts.sum() == label.numel() - 6 * label.shape[1]


@pytest.mark.parametrize(("classes", "ignore_label"), [(7, 255), (255, 255), (256, 65535), (459, 65535), (459, 3)])
def test_wide_labels(classes, ignore_label):
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, classes, (2, 40, 50))
    label[rng.random(label.shape) < 0.1] = ignore_label
    counts = count_confusion(torch.from_numpy(prediction), torch.from_numpy(label).int(), classes, ignore_label)
    valid = label != ignore_label
    truth = metrics.confusion_matrix(label[valid], prediction[valid], labels=range(classes))
    np.testing.assert_array_equal(counts, truth)
    for value in (classes + 300, -1, 60000):
        label[3, 4] = value
        with pytest.raises(ValueError, match=f"label value {value}: expected 0 to {classes - 1}, or {ignore_label}"):
            count_confusion(torch.from_numpy(prediction), torch.from_numpy(label).int(), classes, ignore_label)


def test_a_class_that_is_ignored_is_in_no_mean():
    """What remains is what there would be without the class, but for its predictions, which are misses."""
    prediction, label = random_maps(seed=5, ignored=0)
    result = summarize_confusion(
        count_confusion(prediction, label, 7, ignore_label=0).numpy(), NAMES, {"g": NAMES[:2]}, ignored_class=0
    )
    valid = label != 0
    iou = metrics.jaccard_score(label[valid], prediction[valid], labels=range(1, 7), average=None)
    recall = metrics.recall_score(label[valid], prediction[valid], labels=range(1, 7), average=None)
    assert result["mIoU"] == pytest.approx(100 * iou.mean(), rel=1e-12)
    assert result["mACC"] == pytest.approx(100 * recall.mean(), rel=1e-12)
    assert result["mIoU-g"] == pytest.approx(100 * iou[0], rel=1e-12)
    assert np.isnan(result["IoU-class 0"]) and np.isnan(result["ACC-class 0"])
    assert not np.isnan(result["fwIoU"])


def test_counting_leaves_its_inputs_alone():
    prediction, label = random_maps()
    before = prediction.clone(), label.clone()
    count_confusion(prediction.to(torch.int32), label, 7)
    assert torch.equal(prediction, before[0]) and torch.equal(label, before[1])


def test_sizes_must_agree():
    prediction, label = random_maps()
    with pytest.raises(ValueError, match="37 x 52.*37 x 53.*equal"):
        count_confusion(prediction[:, :-1], label, 7)


def test_values_must_be_classes():
    prediction, label = random_maps()
    label[2, 2] = 9
    with pytest.raises(ValueError, match="label value 9: expected 0 to 6, or 255"):
        count_confusion(prediction, label, 7)
    prediction, label = random_maps()
    prediction[0, 0] = 7
    with pytest.raises(ValueError, match="predicted class 0 to 7: expected 0 to 6"):
        count_confusion(prediction, label, 7)


def test_metrics_equal_sklearn():
    prediction, label = random_maps(seed=3)
    result = summarize_confusion(count_confusion(prediction, label, 7).numpy(), NAMES)
    valid = label != 255
    truth, guess = label[valid], prediction[valid]
    iou = metrics.jaccard_score(truth, guess, average=None)
    recall = metrics.recall_score(truth, guess, average=None)
    for i, name in enumerate(NAMES):
        assert result[f"IoU-{name}"] == pytest.approx(100 * iou[i], rel=1e-12)
        assert result[f"ACC-{name}"] == pytest.approx(100 * recall[i], rel=1e-12)
    assert result["mIoU"] == pytest.approx(100 * iou.mean(), rel=1e-12)
    assert result["fwIoU"] == pytest.approx(100 * metrics.jaccard_score(truth, guess, average="weighted"), rel=1e-12)
    assert result["mACC"] == pytest.approx(100 * metrics.balanced_accuracy_score(truth, guess), rel=1e-12)
    assert result["pACC"] == pytest.approx(100 * metrics.accuracy_score(truth, guess), rel=1e-12)


def test_classes_that_do_not_occur_by_hand():
    # "a" is half found, "b" is only predicted, "c" does not occur, "d" is found.
    confusion = np.array([[2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 4]])
    result = summarize_confusion(confusion, "abcd", {"ends": "ad", "middle": "bc", "absent": "c"})
    assert [result[f"IoU-{n}"] for n in "abd"] == [50, 0, 100] and np.isnan(result["IoU-c"])
    assert result["mIoU"] == pytest.approx(50)
    assert result["mIoU-ends"] == pytest.approx(75)
    assert result["mIoU-middle"] == 0
    assert np.isnan(result["mIoU-absent"])
    assert result["fwIoU"] == pytest.approx(75)
    assert result["mACC"] == pytest.approx(75) and result["pACC"] == pytest.approx(75)
    assert np.isnan(result["ACC-b"]) and np.isnan(result["ACC-c"])


@pytest.mark.filterwarnings("error")
def test_nothing_counted_gives_no_number_and_no_warning():
    result = summarize_confusion(np.zeros((7, 7), np.int64), NAMES, {"g": NAMES[:2]})
    assert all(np.isnan(v) for v in result.values())


def test_groups_must_name_classes():
    with pytest.raises(ValueError, match="group 'rare' names .'cat'., .*'class 6'"):
        summarize_confusion(np.eye(7, dtype=np.int64), NAMES, {"rare": ["class 1", "cat"]})
    with pytest.raises(ValueError, match=r"\(7, 7\) does not fit 6"):
        summarize_confusion(np.eye(7, dtype=np.int64), NAMES[:6])

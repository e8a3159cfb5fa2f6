"""From scores to classes, the confusion matrix of a semantic segmentation, and every figure that follows from it.

A confusion matrix has one row per class of the label and one column per class of the prediction, in pixels.
Pixels whose label is the ignore label are in none of its cells.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

# Number of positions whose best score and class fit into a processor's cache.
POSITIONS_PER_BAND = 1 << 18


@torch.no_grad()
def argmax_classes(scores: Tensor) -> Tensor:
    """Class of the largest score of each pixel, the first of several: the values of ``scores.argmax(0)``.

    On a CPU it is several times faster: argmax does not use the processor's vector instructions.

    Args:
        scores: (K, H, W).

    Returns:
        (H, W) int64.
    """
    # argmax is fast where the scores of a pixel lie side by side.
    if scores.device.type != "cpu" or scores.stride(0) == 1:
        return scores.argmax(0)
    classes = torch.empty(scores.shape[1:], dtype=torch.int64)
    rows = max(1, POSITIONS_PER_BAND // max(1, scores.shape[2]))
    for band, result in zip(scores.split(rows, dim=1), classes.split(rows)):
        result.copy_(_argmax_in_cache(band))
    return classes


def _argmax_in_cache(scores: Tensor) -> Tensor:
    """The class ids (H, W) of a few rows, as floating point: comparisons into such masks use vector instructions."""
    best = scores[0].clone(memory_format=torch.contiguous_format)
    classes = torch.zeros(best.shape)
    larger = torch.empty(best.shape)
    for k, score in enumerate(scores[1:], start=1):
        torch.gt(score, best, out=larger)
        torch.maximum(score, best, out=best)
        torch.maximum(classes, larger.mul_(k), out=classes)
    # argmax takes NaN for the largest number; no comparison does.
    return scores.argmax(0) if best.isnan().any() else classes


def count_confusion(prediction: Tensor, label: Tensor, num_classes: int, ignore_label: int = 255) -> Tensor:
    """Count the pixels of one image by label and prediction, on the device of its tensors.

    Args:
        prediction: class ids, (H, W), any integer type.
        label: class ids and the ignore label, (H, W), any integer type; uint8 is fastest.
        num_classes: number of classes K.
        ignore_label: label of pixels that are not counted, which may be one of the classes.

    Returns:
        (K, K) int64, rows are labels and columns predictions.

    Raises:
        ValueError: the two differ in size, or hold a value that is neither a class nor ignored.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"the prediction is {_size(prediction)} and the label {_size(label)} (height x width): expected equal sizes"
        )
    prediction = prediction.to(torch.int32)
    if prediction.numel():
        low, high = (int(x) for x in prediction.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"predicted class {low} to {high}: expected 0 to {num_classes - 1}")
    if label.dtype == torch.uint8 and num_classes <= 256:
        # One row for every value that a label can have: nothing needs to be masked before counting.
        rows = 256
    else:
        # A row for ignored pixels after those of the classes.
        rows = num_classes + 1
        ignored = label == ignore_label
        low, high = (int(x) for x in label.masked_fill(ignored, 0).aminmax()) if label.numel() else (0, 0)
        if low < 0 or high >= num_classes:
            raise _unknown_label(low if low < 0 else high, num_classes, ignore_label)
        label, ignore_label = label.to(torch.int32).masked_fill(ignored, num_classes), num_classes
    cell = label.to(torch.int32).mul_(num_classes).add_(prediction)
    counts = torch.bincount(cell.view(-1), minlength=rows * num_classes).view(rows, num_classes)
    if ignore_label < rows:
        counts[ignore_label] = 0
    unknown = counts[num_classes:].sum(1)
    if unknown.any():
        raise _unknown_label(num_classes + int(unknown.argmax()), num_classes, ignore_label)
    return counts[:num_classes]


def summarize_confusion(
    confusion: np.ndarray,
    class_names: Sequence[str],
    class_groups: Mapping[str, Sequence[str]] | None = None,
    ignored_class: int | None = None,
) -> dict[str, float]:
    """Compute the metrics of a confusion matrix, under Detectron2's names.

    A class that occurs neither in the labels nor in the predictions has no IoU (NaN) and is left out of the
    means; a class that was only predicted has IoU 0, as in cityscapesScripts. Accuracies need pixels
    of the class in the labels. A class that is the ignore label has no IoU, either: predictions of it are misses of
    the other classes.

    Args:
        confusion: (K, K) pixels, rows are labels and columns predictions.
        class_names: the K names.
        class_groups: names of the classes in each group; "rare" gives "mIoU-rare".
        ignored_class: the class that is not counted, if it is one of the K.

    Returns:
        In percent: "mIoU", "fwIoU" (IoU weighted by the frequency of the class in the labels), "mACC" and
        "pACC" (mean class accuracy and pixel accuracy), "mIoU-<group>", and "IoU-<class>" and
        "ACC-<class>" for every class.

    Raises:
        ValueError: a group has a name that is no class, or sizes do not match.
    """
    if confusion.shape != (len(class_names), len(class_names)):
        raise ValueError(f"a confusion matrix of shape {confusion.shape} does not fit {len(class_names)} class names")
    hits = confusion.diagonal().astype(np.float64)
    labelled = confusion.sum(1).astype(np.float64)
    union = labelled + confusion.sum(0) - hits
    iou, accuracy = _divide(hits, union), _divide(hits, labelled)
    if ignored_class is not None:
        iou[ignored_class] = accuracy[ignored_class] = np.nan

    result = {
        "mIoU": _mean(iou),
        "fwIoU": float(_divide(np.nansum(labelled * iou), labelled.sum())),
        "mACC": _mean(accuracy),
        "pACC": float(_divide(hits.sum(), labelled.sum())),
    }
    index = {name: i for i, name in enumerate(class_names)}
    for group, names in (class_groups or {}).items():
        unknown = [name for name in names if name not in index]
        if unknown:
            raise ValueError(
                f"class group {group!r} names {unknown}, which are no classes: expected some of {list(class_names)}"
            )
        result[f"mIoU-{group}"] = _mean(iou[[index[name] for name in names]])
    result.update({f"IoU-{name}": float(value) for name, value in zip(class_names, iou)})
    result.update({f"ACC-{name}": float(value) for name, value in zip(class_names, accuracy)})
    return {name: 100.0 * value for name, value in result.items()}


def _unknown_label(value: int, num_classes: int, ignore_label: int) -> ValueError:
    return ValueError(f"label value {value}: expected 0 to {num_classes - 1}, or {ignore_label} for ignored pixels")


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) > 0)


def _mean(values: np.ndarray) -> float:
    """Mean of the values that exist, NaN if none does."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape))

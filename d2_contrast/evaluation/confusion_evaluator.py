"""Evaluation of semantic segmentation from one confusion matrix."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from ..arrivals import arrive
from ..data import check_metadata, describe_missing_classes, get_ignore_label, read_label
from ..output import write_whole
from ..tables import write_json
from .background import Background
from .metrics import argmax_classes, count_confusion, summarize_confusion

logger = logging.getLogger(__name__)

T = TypeVar("T")  # anything that can be added

CONFUSION_FILE = "confusion_matrix.npz"
RESULTS_FILE = "sem_seg_results.json"


class ConfusionEvaluator(DatasetEvaluator):
    """Evaluate a labelled dataset: IoU and accuracies for each class and group, and their means.

    Everything is computed from one confusion matrix, summed over processes. It is kept in ``confusion`` and,
    on the main process, written with the results to ``output_dir`` (``confusion_matrix.npz`` with
    "confusion" and "class_names", ``sem_seg_results.json``).

    Attributes:
        confusion: after :meth:`evaluate` on the main process, (K, K) int64 pixels, rows are labels and
            columns predictions; None elsewhere and before.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, distributed: bool = True):
        """
        Args:
            dataset_name: a registered dataset whose metadata has ``stuff_classes`` and may have
                ``ignore_label`` (255) and ``class_groups`` (group name to class names).
            output_dir: folder for the results, or None to write none.
            distributed: sum over all processes; otherwise each process evaluates its own images.

        Raises:
            ValueError: the metadata is invalid, see :func:`d2_contrast.data.check_metadata`.
        """
        self.metadata = MetadataCatalog.get(dataset_name)
        check_metadata(self.metadata)
        self.class_names = list(self.metadata.stuff_classes)
        self.class_groups = self.metadata.get("class_groups", {})
        self.ignore_label = get_ignore_label(self.metadata)
        self.output_dir = output_dir
        self.distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._background = Background()
        self._counts = torch.zeros(len(self.class_names), len(self.class_names), dtype=torch.int64)
        self._pixels = 0  # ignored ones among them
        self.confusion: np.ndarray | None = None

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Count the pixels of some images in a thread, while the caller runs the network on the next image.

        Args:
            inputs: dicts with "file_name" and "sem_seg_file_name".
            outputs: dicts with "sem_seg": scores (K, H, W), or class ids (H, W), at the label's size.

        Raises:
            ValueError: an image has no label, or the prediction and label of the image before do not fit. What is
                wrong with the last image is raised by :meth:`evaluate`.
        """
        for input, output in zip(inputs, outputs, strict=True):
            self._background.start(self._count_image, label_file_name(input), output["sem_seg"])

    def _count_image(self, label_file: str, sem_seg: Tensor) -> None:
        label = torch.from_numpy(read_label(label_file, self.metadata))
        self.count(predicted_classes(sem_seg), label, label_file)

    def count(self, prediction: Tensor, label: Tensor, label_file: str) -> None:
        """Add one image: class ids (H, W) of prediction and label, and the label's file for errors."""
        try:
            counts = count_confusion(prediction, label.to(prediction.device), len(self.class_names), self.ignore_label)
        except ValueError as e:
            raise ValueError(f"{label_file}: {e}") from e
        self._counts += counts.cpu()
        self._pixels += label.numel()

    def evaluate(self) -> OrderedDict | None:
        """Compute the metrics of all images counted since :meth:`reset`.

        Returns:
            {"sem_seg": {metric: percent}} as of :func:`summarize_confusion`; None on other processes than
            the main one.

        Raises:
            ValueError: the prediction and label of the last image do not fit.
        """
        self.gather()
        if self.distributed and not comm.is_main_process():
            return None
        results = self.summarize()
        table = results_table(results, self.class_names, self.confusion)
        logger.debug("Evaluation of %s:\n%s", self.metadata.name, table)
        labelled = self.confusion.sum(1)
        if note := describe_missing_classes(self.metadata, labelled, self._all_pixels - int(labelled.sum())):
            logger.warning("%s. Metrics leave such classes out where they are not predicted, either", note)
        if self.output_dir:
            self._save(results)
        return OrderedDict(sem_seg=results)

    def gather(self) -> None:
        """Wait for all counts and sum them over the processes; called in all of them."""
        self._background.finish()
        counts = self.sum_over_processes(self._counts)
        self._all_pixels = self.sum_over_processes(self._pixels)
        self.confusion = None if counts is None else counts.numpy()

    def summarize(self) -> dict[str, float]:
        """Compute the metrics from what was gathered."""
        ignored_class = self.ignore_label if self.ignore_label < len(self.class_names) else None
        return summarize_confusion(self.confusion, self.class_names, self.class_groups, ignored_class)

    def sum_over_processes(self, counts: T) -> T | None:
        """The sum on the main process, None on others; with ``distributed`` off, each process's own."""
        if not self.distributed:
            return counts
        arrive()
        gathered = comm.gather(counts)
        return sum(gathered[1:], gathered[0]) if comm.is_main_process() else None

    def _save(self, results: Mapping[str, float]) -> None:
        os.makedirs(self.output_dir, exist_ok=True)
        with write_whole(os.path.join(self.output_dir, CONFUSION_FILE)) as f:
            np.savez_compressed(f, confusion=self.confusion, class_names=np.array(self.class_names))
        write_json(os.path.join(self.output_dir, RESULTS_FILE), results)  # null for a class that does not occur


def results_table(results: Mapping[str, float], class_names: Sequence[str], confusion: np.ndarray) -> str:
    """Metrics of :func:`summarize_confusion` as text: a line for each class, then the means."""
    share = confusion.sum(1) / max(confusion.sum(), 1)
    classes = [(name, results[f"IoU-{name}"], results[f"ACC-{name}"], 100 * s) for name, s in zip(class_names, share)]
    means = [(k, v) for k, v in results.items() if "-" not in k or k.startswith("mIoU-")]
    style = {"floatfmt": ".2f", "tablefmt": "simple", "missingval": "-"}
    return "\n\n".join(
        [
            tabulate(classes, ["class", "IoU (%)", "accuracy (%)", "pixels (%)"], **style),
            tabulate(means, ["mean", "%"], **style),
        ]
    )


def predicted_classes(sem_seg: Tensor) -> Tensor:
    """Class ids (H, W) of a prediction that is given as scores (K, H, W) or as class ids already."""
    return argmax_classes(sem_seg) if sem_seg.dim() == 3 else sem_seg


def label_file_name(input: Mapping) -> str:
    """The label file of a dataset dict.

    Raises:
        ValueError: it has none.
    """
    if "sem_seg_file_name" not in input:
        raise ValueError(
            f"{input.get('file_name')}: no label to evaluate against, its dataset dict has no "
            "'sem_seg_file_name' (the mapper must keep it)"
        )
    return input["sem_seg_file_name"]

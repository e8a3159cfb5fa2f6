"""Cityscapes' own metrics, by cityscapesScripts."""

import copy
import logging
import re

import numpy as np
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..data.files import read_raw_label
from ..extras import import_extra
from .confusion_evaluator import ConfusionEvaluator

logger = logging.getLogger(__name__)


class CityscapesEvaluator(ConfusionEvaluator):
    """Evaluate with the metrics of the Cityscapes benchmark in addition to those of :class:`ConfusionEvaluator`.

    Results, in percent, named as by Detectron2: "iIoU" (mean over the classes with instances), "IoU_sup" (mean over
    categories), "iIoU_sup" (mean over the categories with instances), each also alone as "iIoU-<class>",
    "IoU_sup-<category>", "iIoU_sup-<category>"; the benchmark's "IoU" is "mIoU". Metrics of instances need
    ``*_instanceIds.png`` beside the labels; where one is missing they are left out.

    cityscapesScripts holds the class table and computes every score from pixel counts. The counting is ours: its own
    function for a pair of files fails on NumPy 2.4 and newer, and reads predictions from files. Counts are summed over
    all processes, on any number of machines.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, distributed: bool = True):
        official = import_extra("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", "cityscapes")
        self._official = official
        self._args = copy.copy(official.args)
        self._matrix = official.generateMatrix(self._args)  # by raw id; also fills in args.evalLabels
        labels = [official.id2label[i] for i in range(len(self._matrix))]
        self._category = np.array([label.categoryId for label in labels])
        # Weight of an instance of one pixel; 0 for labels without instances, or that do not count.
        self._weight = np.array(
            [0.0 if label.ignoreInEval else self._args.avgClassSize.get(label.name, 0.0) for label in labels]
        )
        super().__init__(dataset_name, output_dir, distributed)
        unknown = [name for name in self.class_names if name not in official.name2label]
        if unknown:
            raise ValueError(f"dataset {dataset_name!r} has classes that Cityscapes does not have: {unknown}")
        self._ids = np.array([official.name2label[name].id for name in self.class_names])

    def reset(self) -> None:
        super().reset()
        # By raw id of the instances: weighted pixels found with their class, found with their category, and in all.
        self._instances = np.zeros((len(self._matrix), 3))
        self._without_instances: list[str] = []

    def count(self, prediction: Tensor, label: Tensor, label_file: str) -> None:
        super().count(prediction, label, label_file)
        instance_file = re.sub("_label(Train)?Ids", "_instanceIds", label_file)
        if instance_file == label_file or not PathManager.isfile(instance_file):
            self._without_instances.append(label_file)
            return
        instances = read_raw_label(instance_file)
        if instances.shape != tuple(prediction.shape):
            raise ValueError(f"{instance_file}: the size is {instances.shape}, the label's {tuple(label.shape)}")
        self._instances += self._count_instances(self._ids[prediction.cpu().numpy()], instances)

    def _count_instances(self, prediction: np.ndarray, instances: np.ndarray) -> np.ndarray:
        """Weighted pixels of the instances of one image, as in ``_instances``, from maps of raw ids."""
        # An instance is numbered 1000 * raw id + k; smaller numbers are groups that were not told apart.
        single = instances > 1000
        prediction, instances = prediction[single], instances[single].astype(np.int64)
        truth = instances // 1000
        found = prediction == truth
        found_category = self._category[prediction] == self._category[truth]
        size = 1000 * len(self._matrix)
        pixels = np.stack(
            [np.bincount(instances[which], minlength=size) for which in (found, found_category, slice(None))], axis=1
        )
        (present,) = np.nonzero(pixels[:, 2])
        weighted = pixels[present] * (self._weight[present // 1000] / pixels[present, 2])[:, None]
        result = np.zeros_like(self._instances)
        np.add.at(result, present // 1000, weighted)
        return result

    def gather(self) -> None:
        super().gather()
        self._all_instances = self.sum_over_processes(self._instances)
        self._all_without_instances = self.sum_over_processes(self._without_instances)

    def summarize(self) -> dict[str, float]:
        official, args, ids = self._official, self._args, self._ids
        matrix = np.zeros_like(self._matrix)
        matrix[np.ix_(ids, ids)] = self.confusion
        scores = {"IoU_sup": {c: official.getIouScoreForCategory(c, matrix, args) for c in official.category2labels}}
        if self._all_without_instances:
            logger.warning(
                "Metrics of instances are left out: %d labels have no *_instanceIds.png beside them, the first is %s",
                len(self._all_without_instances),
                self._all_without_instances[0],
            )
        else:
            stats = self._instance_stats()
            scores["iIoU"] = {
                name: official.getInstanceIouScoreForLabel(official.name2label[name].id, matrix, stats, args)
                for name in stats["classes"]
            }
            scores["iIoU_sup"] = {
                name: official.getInstanceIouScoreForCategory(name, matrix, stats, args) for name in stats["categories"]
            }
        means = {metric: float(100 * official.getScoreAverage(values, args)) for metric, values in scores.items()}
        details = {
            f"{metric}-{name}": float(100 * value)
            for metric, values in scores.items()
            for name, value in values.items()
        }
        return {**super().summarize(), **means, **details}

    def _instance_stats(self) -> dict:
        """The counts of instances in the form that cityscapesScripts takes."""
        official = self._official
        found, found_category, total = self._all_instances.T
        stats = official.generateInstanceStats(self._args)
        for name, entry in stats["classes"].items():
            i = official.name2label[name].id
            entry.update(tpWeighted=found[i], fnWeighted=total[i] - found[i])
        for entry in stats["categories"].values():
            i = entry["labelIds"]
            entry.update(tpWeighted=found_category[i].sum(), fnWeighted=(total[i] - found_category[i]).sum())
        return stats

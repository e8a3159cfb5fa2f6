"""The evaluator of a dataset, by its metadata."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from .cityscapes import CityscapesEvaluator
from .confusion_evaluator import ConfusionEvaluator
from .folders import evaluation_folder
from .submission import SubmissionWriter

# Evaluators by metadata.evaluator_type, built with (dataset_name, output_dir). Add your own here.
EVALUATORS: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "sem_seg": ConfusionEvaluator,
    "cityscapes_sem_seg": CityscapesEvaluator,
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """Build the evaluator that the metadata of a dataset asks for by ``evaluator_type``.

    A dataset of which no image has a label is not evaluated: its predictions are written for submission.

    Args:
        cfg: the config, for ``OUTPUT_DIR``.
        dataset_name: a registered dataset.
        output_dir: folder for results, by default that of :func:`.folders.evaluation_folder`.

    Raises:
        ValueError: there is no evaluator of that type.
    """
    output_dir = output_dir or evaluation_folder(cfg, dataset_name)
    # Loaded before its metadata is looked at, which some datasets complete on loading.
    dicts = DatasetCatalog.get(dataset_name)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if not any("sem_seg_file_name" in x for x in dicts):
        return SubmissionWriter(dataset_name, output_dir)
    if kind not in EVALUATORS:
        raise ValueError(
            f"dataset {dataset_name!r} has the evaluator_type {kind!r} in its metadata: expected one of "
            f"{sorted(EVALUATORS)}"
        )
    return EVALUATORS[kind](dataset_name, output_dir)

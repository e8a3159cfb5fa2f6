"""The evaluator of a dataset, by its metadata."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.registry import Registry

from ..data import load_dicts
from ..extras import MissingExtraError
from .cityscapes import CityscapesEvaluator
from .confusion_evaluator import ConfusionEvaluator
from .folders import evaluation_folder
from .submission import SubmissionWriter

logger = logging.getLogger(__name__)

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Evaluators by the ``evaluator_type`` of a dataset's metadata; an entry is called with (dataset_name, output_dir) and
gives a DatasetEvaluator.
"""


@EVALUATOR_REGISTRY.register()
def sem_seg(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Detectron2's ``evaluator_type`` of datasets for semantic segmentation."""
    return ConfusionEvaluator(dataset_name, output_dir)


@EVALUATOR_REGISTRY.register()
def cityscapes_sem_seg(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Detectron2's ``evaluator_type`` of Cityscapes."""
    return CityscapesEvaluator(dataset_name, output_dir)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """Build the evaluator that the metadata of a dataset asks for by ``evaluator_type``.

    A dataset without labels is not evaluated: its predictions are written for submission. If the evaluator needs an
    extra that is not installed, only IoU is measured, with a warning.

    Args:
        cfg: the config, for ``OUTPUT_DIR``.
        dataset_name: a registered dataset.
        output_dir: folder for results, by default that of :func:`.folders.evaluation_folder`.

    Raises:
        ValueError: there is no evaluator of that type.
    """
    output_dir = output_dir or evaluation_folder(cfg, dataset_name)
    # Loaded first: some datasets complete their metadata on loading.
    dicts = load_dicts(dataset_name)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if not any("sem_seg_file_name" in x for x in dicts):
        return SubmissionWriter(dataset_name, output_dir)
    if kind not in EVALUATOR_REGISTRY:
        raise ValueError(
            f"dataset {dataset_name!r} has the evaluator_type {kind!r} in its metadata: expected one of "
            f"{sorted(name for name, _ in EVALUATOR_REGISTRY)}"
        )
    try:
        return EVALUATOR_REGISTRY.get(kind)(dataset_name, output_dir)
    except MissingExtraError as error:
        logger.warning(
            "%s is evaluated by IoU alone, without the other metrics of its benchmark: %s", dataset_name, error
        )
        return ConfusionEvaluator(dataset_name, output_dir)

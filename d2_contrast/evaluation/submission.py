"""Predictions as files, for a benchmark's server."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from .confusion_evaluator import predicted_classes

logger = logging.getLogger(__name__)


class SubmissionWriter(DatasetEvaluator):
    """Write the prediction of every image of an unlabelled dataset as a PNG file of the benchmark's own class ids.

    The file of ``.../name.jpg`` is ``submission/name.png`` in ``output_dir``, single-channel, with the image's size.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            dataset_name: a registered dataset. ``submission_ids`` in its metadata lists the benchmark's id of each
                class; without it train ids are written.
            output_dir: the folder above ``submission``.
        """
        metadata = MetadataCatalog.get(dataset_name)
        ids = metadata.get("submission_ids", range(len(metadata.stuff_classes)))
        self.ids = np.array(ids, dtype=np.uint8 if max(ids) < 256 else np.uint16)
        self.folder = os.path.join(output_dir, "submission")

    def reset(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        self._written: dict[str, str] = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Write some predictions.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg": scores (K, H, W) or class ids (H, W).

        Raises:
            ValueError: two images have the same name, in different folders.
            OSError: a file cannot be written.
        """
        for input, output in zip(inputs, outputs, strict=True):
            path = os.path.join(self.folder, Path(input["file_name"]).stem + ".png")
            other = self._written.setdefault(path, input["file_name"])
            if other != input["file_name"]:
                raise ValueError(f"{other} and {input['file_name']} have the same name: both would be {path}")
            prediction = self.ids[predicted_classes(output["sem_seg"]).cpu().numpy()]
            if not cv2.imwrite(path, prediction):
                raise OSError(f"{path}: cannot write this prediction")

    def evaluate(self) -> OrderedDict:
        """Say where the files are; there is no figure to compute."""
        comm.synchronize()
        if comm.is_main_process():
            logger.info("Predictions are in %s", self.folder)
        return OrderedDict()

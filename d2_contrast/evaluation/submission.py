"""Predictions as files, for a benchmark's server."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..arrivals import arrive
from ..data import check_metadata, load_dicts
from ..data.datasets.register import datasets_root
from ..data.files import write_picture
from ..output import distinct_names
from .background import Background
from .confusion_evaluator import predicted_classes

logger = logging.getLogger(__name__)


class SubmissionWriter(DatasetEvaluator):
    """Write the prediction of every image of an unlabelled dataset as a PNG file of the benchmark's own class ids.

    The file of ``.../sub/name.jpg`` is ``submission/sub/name.png`` in ``output_dir``, single-channel, with the image's
    size: paths are kept below the folder of the images (``images_folder`` in the metadata, as for DATASETS.FOLDERS), or
    the deepest folder that it and all images share. Images that differ in their suffix alone keep it: ``name.jpg.png``.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            dataset_name: a registered dataset. ``submission_ids`` in its metadata lists the benchmark's id of each
                class; without it train ids are written.
            output_dir: the folder above ``submission``.

        Raises:
            ValueError: the metadata is invalid, see :func:`d2_contrast.data.check_metadata`.
        """
        metadata = MetadataCatalog.get(dataset_name)
        check_metadata(metadata)
        ids = metadata.get("submission_ids", range(len(metadata.stuff_classes)))
        self.ids = np.array(ids, dtype=np.uint8 if max(ids) < 256 else np.uint16)
        self.folder = os.path.join(output_dir, "submission")
        self.paths = {
            file_name: os.path.join(self.folder, path)
            for file_name, path in _relative_paths(
                [sample["file_name"] for sample in load_dicts(dataset_name)], metadata.get("images_folder")
            ).items()
        }

    def reset(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        self._background = Background()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Write some predictions in a thread, while the caller runs the network on the next image.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg": scores (K, H, W) or class ids (H, W).

        Raises:
            OSError: the file before cannot be written. What is wrong with the last one is raised by :meth:`evaluate`.
        """
        for input, output in zip(inputs, outputs, strict=True):
            self._background.start(self._write, self.paths[input["file_name"]], output["sem_seg"])

    def _write(self, path: str, sem_seg: Tensor) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_picture(path, self.ids[predicted_classes(sem_seg).cpu().numpy()])

    def evaluate(self) -> OrderedDict:
        """Say where the files are; there is no figure to compute.

        Raises:
            OSError: the last file cannot be written.
        """
        self._background.finish()
        arrive()
        comm.synchronize()
        if comm.is_main_process():
            logger.info("Predictions are in %s", self.folder)
        return OrderedDict()


def _relative_paths(file_names: Sequence[str], images_folder: str | None) -> dict[str, str]:
    """Where the prediction of each image goes, below the folder of all predictions."""
    full = {name: os.path.abspath(name) for name in file_names}
    folders = {os.path.dirname(path) for path in full.values()}
    if images_folder is not None:
        folders.add(os.path.abspath(datasets_root() / Path(images_folder).expanduser()))
    base = os.path.commonpath(folders)  # above all of them, so that no path leads out of it
    names = distinct_names([Path(os.path.relpath(path, base)) for path in full.values()])
    return {file_name: f"{name}.png" for file_name, name in zip(full, names)}

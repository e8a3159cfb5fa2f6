"""Pictures of a run in training."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from PIL import Image

from ..evaluation import CONFUSION_FILE
from ..extras import MissingExtraError
from ..random_numbers import same_random_numbers
from .averaging import averaged_weights
from .parallel import on_main_process

logger = logging.getLogger(__name__)


class PictureHook(HookBase):
    """Draw predictions, feature maps and the last confusion matrix every VIS_PERIOD iterations.

    The files are in ``pictures/<iteration>`` in OUTPUT_DIR, and TensorBoard shows them. They do not change the
    training: random numbers are restored.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the config of the run; VIS_PERIOD is 1 or more.
        """
        self.cfg = cfg
        try:
            from ..visualize import write_report

            self._write_report: Callable[..., list[str]] | None = write_report
        except MissingExtraError as error:
            logger.warning("No pictures are drawn: %s", error)
            self._write_report = None

    def after_step(self) -> None:
        if self._write_report and (self.trainer.iter + 1) % self.cfg.VIS_PERIOD == 0:
            on_main_process(self._draw)

    def _draw(self) -> None:
        folder = os.path.join(self.cfg.OUTPUT_DIR, "pictures", f"{self.trainer.iter + 1:07d}")
        trainer = self.trainer
        with same_random_numbers(), averaged_weights(trainer.network, trainer.average):
            files = self._write_report(self.cfg, trainer.network, self._confusion(), folder)
        for file in files:
            picture = np.asarray(Image.open(file).convert("RGB"))
            trainer.storage.put_image(f"pictures/{Path(file).stem}", picture.transpose(2, 0, 1))

    def _confusion(self) -> np.ndarray | None:
        """The confusion matrix of the last evaluation of the first test dataset, if there was one."""
        folder = self.trainer.evaluation_folders.get(next(iter(self.cfg.DATASETS.TEST), ""), "")
        path = os.path.join(folder, CONFUSION_FILE)
        if not folder or not os.path.isfile(path):
            return None
        with np.load(path) as saved:
            return saved["confusion"]

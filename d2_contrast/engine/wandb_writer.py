"""Metrics of a run in Weights & Biases."""

import math
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import flatten
from ..errors import shown
from ..extras import import_extra
from ..output import write_text

RUN_ID = "wandb_run_id.txt"


class WandbWriter(EventWriter):
    """Logs scalars to the project that WANDB.PROJECT names.

    A run that is resumed goes on in the same record, whose id is kept in OUTPUT_DIR. Environment variables of Weights &
    Biases say where it is kept and whether a network is needed, such as WANDB_MODE=offline.
    """

    def __init__(self, cfg: CfgNode, window_size: int = 20):
        """
        Args:
            cfg: the config of the run.
            window_size: iterations over which the median of smoothed values is taken.

        Raises:
            MissingExtraError: the package is not installed.
            ValueError: it cannot start a record, for example because nobody has logged in.
        """
        wandb = import_extra("wandb", "wandb")
        # Weights & Biases alone goes on with runs that crashed, but not with those that ended in order.
        path = Path(cfg.OUTPUT_DIR, RUN_ID)
        known = path.read_text() if path.is_file() else None
        try:
            self._run = wandb.init(
                project=cfg.WANDB.PROJECT,
                name=cfg.WANDB.NAME or None,
                dir=cfg.OUTPUT_DIR,
                config=flatten(cfg),
                id=os.environ.get("WANDB_RUN_ID") or known,
                resume="allow",
            )
        except Exception as error:  # it has exceptions of many kinds: no login, no network, names that it refuses
            raise ValueError(
                f"WANDB.PROJECT is {shown(cfg.WANDB.PROJECT)}: Weights & Biases cannot start a record "
                f"({' '.join(str(error).split())}). WANDB_MODE=offline keeps it on this machine"
            ) from error
        write_text(path, self._run.id)
        self.window_size = window_size
        self._written = -1

    def write(self) -> None:
        latest = get_event_storage().latest_with_smoothing_hint(self.window_size)
        new = {name: value for name, (value, iteration) in latest.items() if iteration > self._written}
        if new:
            self._written = max(iteration for _, iteration in latest.values())
            self._run.log({name: value for name, value in new.items() if math.isfinite(value)}, step=self._written)

    def close(self) -> None:
        self._run.finish()

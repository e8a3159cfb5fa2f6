"""Metrics of a run in Weights & Biases."""

import math
import os
from collections import defaultdict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import flatten
from ..errors import shown
from ..extras import import_extra
from ..output import write_text
from .metrics_writer import WINDOW

RUN_ID = "wandb_run_id.txt"


def start_record(cfg: CfgNode):
    """Start a record in the project that WANDB.PROJECT names; gives what Weights & Biases calls a run.

    A run that is resumed goes on in the same record, whose id is kept in OUTPUT_DIR. Environment variables of Weights &
    Biases say where it is kept and whether a network is needed, such as WANDB_MODE=offline.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError: it cannot start a record, for example because nobody has logged in.
    """
    wandb = import_extra("wandb", "wandb")
    # Weights & Biases alone goes on with runs that crashed, but not with those that ended in order.
    path = Path(cfg.OUTPUT_DIR, RUN_ID)
    known = path.read_text() if path.is_file() else None
    try:
        run = wandb.init(
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
    write_text(path, run.id)
    return run


class WandbWriter(EventWriter):
    """Logs scalars to a record, each at its own iteration."""

    def __init__(self, record, window_size: int = WINDOW, start_iter: int = 0):
        """
        Args:
            record: of :func:`start_record`.
            window_size: iterations over which the median of smoothed values is taken.
            start_iter: iteration that the run goes on with.
        """
        self._record = record
        self.window_size = window_size
        self._written = start_iter - 2  # the evaluation after the last iteration may be done only now

    def write(self) -> None:
        steps: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self.window_size).items():
            if iteration > self._written and math.isfinite(value):
                steps[iteration][name] = value
        for iteration, values in sorted(steps.items()):
            self._record.log(values, step=iteration)
            self._written = iteration

    def close(self) -> None:
        self._record.finish()

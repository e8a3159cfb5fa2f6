"""Files of weights for prediction only, with the config and the classes inside."""

import json
import logging
import math
import os
from collections.abc import Mapping

import safetensors.torch
from detectron2.config import CfgNode
from torch import nn

from ..data import Classes
from ..evaluation import hash_settings
from ..modeling.meta_arch import TRAINING_ONLY
from ..output import write_whole

BEST = "model_best.safetensors"

logger = logging.getLogger(__name__)


def save_stripped(path: str, model: nn.Module, cfg: CfgNode, classes: Classes, **notes: object) -> None:
    """Write the weights that a prediction needs as a safetensors file.

    Its metadata are texts: "config", the whole config as yaml; "classes" as of :meth:`Classes.to_json`; and the notes.

    Args:
        path: of the file, in a folder that exists.
        model: a segmentor. Its auxiliary head and contrastive branch are left out.
        cfg: its config.
        classes: what it tells apart.
        notes: more about these weights, such as the iteration.

    Raises:
        OSError: the file cannot be written.
    """
    weights = {
        # Tensors that share memory are written one by one.
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(TRAINING_ONLY)
    }
    metadata = {"config": cfg.dump(), "classes": classes.to_json(), **{key: str(note) for key, note in notes.items()}}
    with write_whole(path) as file:
        file.write(safetensors.torch.save(weights, metadata))


def read_header(path: str) -> dict[str, str]:
    """The metadata of a safetensors file; {} where it has none.

    Raises:
        OSError: there is no such file.
        safetensors.SafetensorError: it is damaged.
    """
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


class BestWeights:
    """Keeps ``model_best.safetensors`` in OUTPUT_DIR: the weights of the best evaluation so far by TEST.BEST_METRIC.

    Where no evaluation gives this metric, they are those of the end. Scores on another first of DATASETS.TEST, or by
    other settings of evaluation, are not compared. To be used in the main process.
    """

    def __init__(self, cfg: CfgNode, goes_on: bool):
        """
        Args:
            cfg: of the run.
            goes_on: the run was resumed, so an existing file is its own.
        """
        self.cfg = cfg
        self.path = os.path.join(cfg.OUTPUT_DIR, BEST)
        self.metric = cfg.TEST.BEST_METRIC
        self.measured = {"dataset": next(iter(cfg.DATASETS.TEST), ""), "settings": hash_settings(cfg)}
        self.score = -math.inf
        if goes_on and os.path.isfile(self.path):
            try:
                header = read_header(self.path)
                if self.measured.items() <= {**self.measured, **header}.items():  # older files do not say it
                    self.score = float(json.loads(header.get("scores", "{}")).get(self.metric, -math.inf))
                else:
                    logger.warning("%s is of another test dataset or other settings: it is written anew", self.path)
            except (OSError, ValueError, AttributeError, TypeError, safetensors.SafetensorError) as error:
                logger.warning("%s cannot be read (%s): it is written anew", self.path, error)

    def update(self, model: nn.Module, results: Mapping, iteration: int, is_last: bool) -> None:
        """Write the weights of ``model`` if ``results``, those of :class:`Trainer`, are the best so far."""
        names = self.cfg.DATASETS.TEST
        tasks = results.get(names[0], {}) if len(names) > 1 else results
        found = {metric: value for task in tasks.values() for metric, value in task.items()}
        score = found.get(self.metric, math.nan)
        if self.metric not in found and found:
            logger.warning("TEST.BEST_METRIC is %r, but the evaluation gives %s", self.metric, ", ".join(found))
        if score > self.score:
            scores = {self.metric: score}
        elif is_last and self.score == -math.inf:
            scores = {}
        else:
            return
        self.score = score if scores else self.score
        save_stripped(
            self.path,
            model,
            self.cfg,
            Classes.of_config(self.cfg),
            iteration=iteration,
            scores=json.dumps(scores),
            **self.measured,
        )
        said = f"{self.metric} {score:.2f}" if scores else "the last weights, since no evaluation tells which are best"
        logger.info("%s holds %s", self.path, said)

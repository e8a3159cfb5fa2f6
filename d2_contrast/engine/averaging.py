"""Exponential moving average of the weights (EMA): kept in training, used in evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_average(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Build the average of ``model`` that SOLVER.EMA asks for, None if it is off."""
    if not cfg.SOLVER.EMA.ENABLED:
        return None
    # Buffers too: running statistics of batch norm belong to the weights that they were measured with.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA.DECAY), use_buffers=True)


class UpdateAverage(HookBase):
    """Take the weights of ``model`` into ``average`` after every step; the first step sets it."""

    def __init__(self, average: AveragedModel, model: nn.Module):
        self.average, self.model = average, model

    def after_step(self) -> None:
        self.average.update_parameters(self.model)


@contextmanager
def averaged_weights(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """Give ``model`` the weights of ``average`` inside the block; no change if it is None or still empty."""
    if average is None or not average.n_averaged:
        yield
        return
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.module.state_dict())
    try:
        yield
    finally:
        with torch.no_grad():
            model.load_state_dict(own)

"""Exponential moving average of the weights (EMA): kept in training, used in evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_average(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Build the average of ``model`` that SOLVER.EMA asks for, None if it is off."""
    if not cfg.SOLVER.EMA.ENABLED:
        return None
    mix = get_ema_multi_avg_fn(cfg.SOLVER.EMA.DECAY)

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        """Tensors of one type. What is no average is copied: torch would round counters and indices down."""
        if averages[0].is_floating_point():
            mix(averages, values, count)
            return
        for average, value in zip(averages, values):
            average.copy_(value)

    # Buffers too: running statistics of batch norm belong to the weights that they were measured with.
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class UpdateAverage(HookBase):
    """Take the weights of ``model`` into ``average`` after every step that was not skipped; the first sets it."""

    def __init__(self, average: AveragedModel, model: nn.Module):
        self.average, self.model = average, model

    def after_step(self) -> None:
        if not self.trainer._trainer.is_skipped:
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

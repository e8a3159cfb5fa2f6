"""A check of the learning rates of a whole run before it starts."""

import logging
import math

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler

# Iterations that are looked at, evenly spread over longer runs.
MOST = 10**6

logger = logging.getLogger(__name__)


def check_schedule(cfg: CfgNode) -> None:
    """Compute the learning rates of all iterations with an optimizer that trains nothing.

    Warns if the run ends before its warm-up.

    Raises:
        ValueError: there is none for an iteration, it is negative or not finite, or it is 0 throughout.
    """
    solver = cfg.SOLVER
    settings = f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r} with SOLVER.MAX_ITER {solver.MAX_ITER}"
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], solver.BASE_LR)
    highest, iteration = 0.0, 0
    step = max(1, solver.MAX_ITER // MOST)
    try:
        scheduler = build_lr_scheduler(cfg, optimizer)
        # The schedule is asked for the rate after the last iteration, too.
        for iteration in (*range(0, solver.MAX_ITER, step), solver.MAX_ITER):
            scheduler.last_epoch = iteration  # of which Detectron2's schedules are functions
            (rate,) = scheduler.get_lr()
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"the rate is {rate}")
            highest = max(highest, rate) if iteration < solver.MAX_ITER else highest
    except Exception as error:
        raise ValueError(
            f"{settings} gives no learning rate in iteration {iteration} ({error}): look at SOLVER.GAMMA, STEPS, "
            "NUM_DECAYS, BASE_LR_END and the keys of SOLVER with POLY and WARMUP in their names"
        ) from error
    if not highest:
        raise ValueError(f"{settings} gives the learning rate 0 in all iterations: nothing would be trained")
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        logger.warning(
            "The run ends in its warm-up, at a learning rate of %g at most: SOLVER.MAX_ITER is %d, WARMUP_ITERS %d",
            *(highest, solver.MAX_ITER, solver.WARMUP_ITERS),
        )

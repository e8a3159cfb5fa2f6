"""A network in several processes that average their gradients."""

import logging
from functools import partial

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config_files import flatten
from .rollback import Rollback

logger = logging.getLogger(__name__)

# Iterations that SOLVER.REFERENCE_WORLD_SIZE scales beside what Detectron2 does: the schedules of this project, and
# periods of Detectron2's that it may round to 0. Periods of the log keep to the 20 iterations of its writers.
SCALED = (
    *("MODEL.CONTRAST.WARMUP_ITERS", "MODEL.CONTRAST.DECAY_ITERS", "VIS_PERIOD"),
    *("TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD"),
)

# Height and width of the image that is tried where INPUT.CROP sets none.
TRIED_SIZE = (128, 128)


def share_among_processes(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a segmentor so that all processes train it together; itself in a single process.

    Raises:
        ValueError: it has layers that need a GPU in each process.
    """
    if comm.get_world_size() == 1:
        return model
    if cfg.MODEL.DEVICE == "cpu" and any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules()):
        keys = [key for key, value in flatten(cfg).items() if value == "SyncBN"]
        raise ValueError(f"{', '.join(keys)}: SyncBN needs a GPU for each process, expected another norm, such as BN")
    unused = find_unused_parameters(cfg, model)
    if unused:
        names = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        logger.warning("No loss depends on these parameters, which are not trained: %s", names)
    for parameter in model.parameters():
        parameter.register_hook(partial(_with_strides_of, parameter.shape, parameter.stride()))
    device_ids = [torch.cuda.current_device()] if cfg.MODEL.DEVICE.startswith("cuda") else None
    return create_ddp_model(
        model,
        broadcast_buffers=False,
        device_ids=device_ids,
        # Processes wait for the gradients of all parameters. Looking for those that get none costs time in every step.
        find_unused_parameters=bool(unused),
    )


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """The config as DefaultTrainer's ``auto_scale_workers`` scales it, with the schedules of this project.

    The run is as long as the config says with SOLVER.REFERENCE_WORLD_SIZE processes; twice as many take half of the
    iterations. No period that is set becomes 0, which would switch it off.
    """
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes)
    if scaled is cfg:
        return cfg
    before = flatten(cfg)
    scale = processes / cfg.SOLVER.REFERENCE_WORLD_SIZE
    lengths = {key: max(1, round(before[key] / scale)) for key in SCALED if before[key]}
    scaled.defrost()
    scaled.merge_from_list([part for pair in lengths.items() for part in pair])
    scaled.freeze()
    return scaled


def split_batches(cfg: CfgNode, processes: int) -> CfgNode:
    """The config with batches that keep SOLVER.MAX_IMS_PER_PROCESS, and more of them in a step instead.

    Raises:
        ValueError: the number of images is not a multiple of that of processes, or the bound is negative.
    """
    images, most = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_IMS_PER_PROCESS
    if images < 1 or images % processes:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {images}: expected a multiple of the {processes} processes")
    own = images // processes
    if most < 0:
        raise ValueError(f"SOLVER.MAX_IMS_PER_PROCESS is {most}: expected 0 or more")
    if not most or own <= most:
        return cfg
    parts = next(parts for parts in range(2, own + 1) if own % parts == 0 and own // parts <= most)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = images // parts
    cfg.SOLVER.ACCUMULATION_STEPS *= parts
    cfg.freeze()
    logger.info(
        "A step takes %d batches of %d images, since SOLVER.MAX_IMS_PER_PROCESS is %d",
        cfg.SOLVER.ACCUMULATION_STEPS,
        cfg.SOLVER.IMS_PER_BATCH,
        most,
    )
    return cfg


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first process, which are the saved ones.

    In training each process measures the statistics of its own batches (unless they are synchronised).
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _with_strides_of(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    """A gradient with the strides of its parameter, if the two only differ along sides of length 1.

    Gradients of 1 x 1 convolutions do. DistributedDataParallel would warn of another layout.
    """
    alike = all(a == b or side == 1 for side, a, b in zip(shape, gradient.stride(), strides))
    return gradient.as_strided(shape, strides) if alike and gradient.stride() != strides else gradient


def find_unused_parameters(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Names of the trainable parameters on which no loss depends, such as the norm of a map that no head reads.

    The losses of a blank image are traced back. Parameters, buffers and random numbers are afterwards as before.

    Args:
        cfg: its config, for the size of the image and the number of classes.
        model: a segmentor. If it talks to other processes in training, all of them have to call this.
    """
    height, width = cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else TRIED_SIZE
    rows = torch.arange(height) * cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES // height
    sample = {"image": torch.zeros(3, height, width), "sem_seg": rows[:, None].repeat(1, width)}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = Rollback(model)
    state.mark()
    devices = [torch.cuda.current_device()] if cfg.MODEL.DEVICE.startswith("cuda") else []
    with torch.random.fork_rng(devices), EventStorage():  # schedules of the losses ask for the iteration
        losses = model([{**sample, "height": height, "width": width}])
        gradients = torch.autograd.grad(sum(losses.values()), list(parameters.values()), allow_unused=True)
    state.undo()
    return [name for name, gradient in zip(parameters, gradients) if gradient is None]

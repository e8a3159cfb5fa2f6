"""A training step as a file, and running it again."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import default_config
from ..output import write_whole
from .checkpoint import NonFiniteError
from .checkpoint_files import read_torch
from .optimizer import build_optimizer
from .train_step import TrainStep, batch_files

PLAIN = (Tensor, str, int, float)  # types that can be read without running code

logger = logging.getLogger(__name__)


def dump_path(folder: str, iteration: int, rank: int) -> str:
    """Where a process writes a step."""
    return os.path.join(folder, f"non_finite_{iteration:07d}_rank{rank}.pth")


def save_step(path: str, cfg: CfgNode, step: TrainStep, reason: str) -> None:
    """Write a step that was not taken: config, weights, batches, scale of the loss, key of its random numbers.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "config": cfg.dump(),
        "iteration": step.iter,
        "reason": reason,
        "model": getattr(step.model, "module", step.model).state_dict(),
        "batches": [
            [{k: v for k, v in sample.items() if isinstance(v, PLAIN)} for sample in batch] for batch in step.batches
        ],
        "random_key": step.random_key,
        "grad_scaler": step.grad_scaler.state_dict(),
    }
    with write_whole(path) as file:
        torch.save(content, file)


def replay_step(path: str) -> list[str]:
    """Run a step of :func:`save_step` again, without stepping the optimizer.

    It runs in one process: losses that look at the batches of others (MODEL.CONTRAST.GATHER, SyncBN) may differ.

    Returns:
        Lines to print: the step, why it was written, what is not finite now, and where that begins.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged or no such step.
    """
    content = read_torch(path)
    needed = {"config", "iteration", "reason", "model", "batches", "random_key"}
    if not isinstance(content, Mapping) or not needed <= content.keys():
        raise ValueError(f"{path} holds no training step: expected a file non_finite_*.pth that a run has written")
    cfg = default_config()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(content["config"]))
    cfg.MODEL.BACKBONE.PRETRAINED = False
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of its network: {' '.join(str(error).split())}") from error
    amp_dtype = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None
    batches, optimizer = content["batches"], build_optimizer(cfg, model)
    step = TrainStep(
        model,
        batches,
        optimizer,
        accumulation_steps=len(batches),
        amp_dtype=amp_dtype,
        random_key=content["random_key"],
    )
    step.iter = content["iteration"]
    if content.get("grad_scaler"):  # which older files lack; empty if the run did not scale its loss
        step.grad_scaler.load_state_dict(content["grad_scaler"])

    told = [
        f"Iteration {step.iter} with {', '.join(batch_files(batches)) or 'batches without files'}",
        f"Then: {content['reason']}",
    ]
    with EventStorage(step.iter), first_not_finite(model) as first:
        try:
            step.run_step()
            told.append("Now: all losses and gradients are finite")
        except NonFiniteError as error:
            told.append(f"Now: {error}")
    if first:
        told.append(f"The first module whose output is not finite: {first[0]}")
    if names := step.infinite_gradients():
        told.append(
            f"Gradients that are not finite: {len(names)}, {', '.join(names[:8])}{', ...' if names[8:] else ''}"
        )
    return told


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Note the names of the modules whose output is not finite, in the order in which they finish."""
    found: list[str] = []

    def watch(name: str):
        def hook(_module, _inputs, output) -> None:
            parts = (
                output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else [output]
            )
            if not all(part.isfinite().all() for part in parts if isinstance(part, Tensor)):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

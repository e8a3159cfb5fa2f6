"""A network compiled by torch.compile."""

from collections.abc import Callable

import torch
from torch import nn


def compile_network(model: nn.Module, backend: str | Callable = "inductor") -> nn.Module:
    """Compile the parts of a segmentor in place when they are first called; names of tensors stay the same.

    Parts are the backbone, each head, and the projectors of whole maps, each as one graph. The rest runs uncompiled:
    reading inputs, drawing anchors, and the losses, since the number of anchors changes in every step.

    A part is compiled for the size of its first images, and once more, for any size, when another size comes. After
    eight variants (training, evaluation, mixed precision or not, ...), torch's limit, it runs uncompiled.

    Args:
        model: one of this project or of Detectron2, on its device.
        backend: of torch.compile.

    Returns:
        The model.

    Raises:
        RuntimeError: this machine has no compiler for the model's device.
    """
    if backend == "inductor":
        check_compiler(next(model.parameters()).device)
    parts = [model.backbone, model.sem_seg_head, getattr(model, "aux_head", None)]
    contrast = getattr(model, "contrast", None)
    if contrast is not None and contrast.project == "dense":
        parts += [projector.hidden for projector in contrast.projectors.values()]
    for part in parts:
        if part is not None:
            part.compile(backend=backend)
    return model


def check_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        RuntimeError: that fails; the message says what to install.
    """
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.ones(2, device=device))
    except Exception as error:
        needed = "Triton" if device.type == "cuda" else "a C++ compiler such as g++"
        last = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"MODEL.COMPILE is True, but torch.compile does not work on this machine ({last}): install {needed}, or "
            "set MODEL.COMPILE False"
        ) from error

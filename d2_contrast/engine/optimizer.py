"""The optimizer of a config."""

from collections.abc import Collection
from itertools import chain

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``cfg.SOLVER.OPTIMIZER`` over the trainable parameters of ``model``.

    The learning rate is BASE_LR, times HEAD_LR_FACTOR outside the backbone, times BIAS_LR_FACTOR for biases. Weight
    decay is WEIGHT_DECAY, but WEIGHT_DECAY_NORM (if set) for normalisation layers, WEIGHT_DECAY_BIAS (if set) for
    biases and 0 for parameters in NO_DECAY_NAMES. Gradients are clipped as CLIP_GRADIENTS says: each parameter's by
    itself, as Detectron2 does, or by the norm of all together ("full_model").
    """
    solver = cfg.SOLVER

    def lr_factor(name: str) -> float:
        of_bias = solver.BIAS_LR_FACTOR if name.rpartition(".")[2] == "bias" else 1.0
        return of_bias * (1.0 if name.startswith("backbone.") else solver.HEAD_LR_FACTOR)

    overrides = {name: {"weight_decay": 0.0} for name in solver.NO_DECAY_NAMES}
    if solver.WEIGHT_DECAY_BIAS is not None:
        overrides = {"bias": {"weight_decay": solver.WEIGHT_DECAY_BIAS}, **overrides}
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        lr_factor_func=lr_factor,  # of biases, too, whose own factor of Detectron2's would take the place of this one
        overrides=overrides,
    )
    if solver.WEIGHT_DECAY_NORM is not None:
        params = _set_decay_of_layer_norms(params, model, solver.WEIGHT_DECAY_NORM, overrides)
    # Fused: one pass over the memory of each parameter, which on a CPU takes a sixth of the time of AdamW's many.
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            params, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=True
        )
        # Were the first step skipped, as float16 may have it, the fused step would keep memory that nobody has set.
        if solver.MOMENTUM:
            for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        optimizer = torch.optim.AdamW(params, solver.BASE_LR, fused=True)
    clip = solver.CLIP_GRADIENTS
    if clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)

    def clip_all(*_) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), clip.CLIP_VALUE, clip.NORM_TYPE)

    if clip.ENABLED:
        optimizer.register_step_pre_hook(clip_all)
    return optimizer


def _set_decay_of_layer_norms(
    groups: list[dict], model: nn.Module, decay: float, others: Collection[str]
) -> list[dict]:
    """Give the "LN" of Detectron2, which its list of norms lacks, the weight decay of norms, except for other names."""
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, LayerNorm)
        for name, parameter in module.named_parameters(recurse=False)
        if name not in others
    }
    divided = []
    for group in groups:
        parts = {is_norm: [p for p in group["params"] if (p in norms) == is_norm] for is_norm in (False, True)}
        divided += [{**group, "params": parts[False]}, {**group, "params": parts[True], "weight_decay": decay}]
    return [group for group in divided if group["params"]]

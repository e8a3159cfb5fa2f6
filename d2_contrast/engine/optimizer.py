"""The optimizer of a config."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``cfg.SOLVER.OPTIMIZER`` over the trainable parameters of ``model``.

    The learning rate is BASE_LR, times HEAD_LR_FACTOR outside the backbone. Weight decay is WEIGHT_DECAY, but
    WEIGHT_DECAY_NORM for normalisation layers, WEIGHT_DECAY_BIAS (if set) for biases and 0 for parameters in
    NO_DECAY_NAMES. Gradients are clipped as CLIP_GRADIENTS says: each parameter's by itself, as Detectron2 does, or by
    the norm of all together ("full_model").
    """
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: 1.0 if name.startswith("backbone.") else solver.HEAD_LR_FACTOR,
        overrides={name: {"weight_decay": 0.0} for name in solver.NO_DECAY_NAMES},
    )
    # Fused: one pass over the memory of each parameter, which on a CPU takes a sixth of the time of AdamW's many.
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            params, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=True
        )
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

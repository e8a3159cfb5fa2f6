"""Networks of other libraries, whose weights are loaded into ours."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from torch import nn


def randomise(model: nn.Module) -> nn.Module:
    """Fill all weights and statistics with what is neither 0 nor 1, so that a tensor left out shows."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            scale = 0.5 if tensor.ndim < 2 or "bias_table" in name else (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.abs_().add_(0.5)
    return model.eval()


def detectron2_resnet(depth=18) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth in (18, 34):
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))

"""Models of the configs at full size, built without memory for their weights."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import d2_contrast.modeling  # noqa: F401, registers the networks
from d2_contrast.config import load_config


def build_on_meta(monkeypatch: pytest.MonkeyPatch, config_file: str, *overrides) -> nn.Module:
    """Build the model of a config on torch's meta device, without loading weights.

    Args:
        overrides: keys and values in turn.
    """
    linspace = torch.linspace
    # Detectron2's Swin computes its drop rates with tensors, and reads them.
    monkeypatch.setattr(torch, "linspace", lambda *args, **kwargs: linspace(*args, **{**kwargs, "device": "cpu"}))
    options = ["MODEL.DEVICE", "meta", "MODEL.BACKBONE.PRETRAINED", False, "MODEL.WEIGHTS", "", *overrides]
    with torch.device("meta"):
        return build_model(load_config(str(config_file), options))


def count(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())

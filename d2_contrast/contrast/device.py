"""Copies from the memory of the host to a device, for which the host does not wait."""

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device while the host goes on; itself if it is there.

    A GPU copies beside the host from pinned memory alone.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)

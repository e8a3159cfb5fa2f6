"""Copies from host memory to a device, without waiting for them."""

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device while the host goes on; itself if it is there.

    A copy to a GPU only runs beside the host if it comes from pinned memory.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)

"""Functions that torch.compile leaves alone."""

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["eager"]

Function = TypeVar("Function", bound=Callable[..., object])


def eager(function: Function) -> Function:
    """Decorate a function whose shapes depend on its input: torch.compile runs it as it is."""
    disable: Callable[[Function], Function] = torch.compiler.disable  # which has no types
    return disable(function)

"""Functions that torch.compile leaves as they are: the number of anchors differs in every step."""

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["eager", "eager_outside"]

Function = TypeVar("Function", bound=Callable[..., object])


def eager(function: Function) -> Function:
    """Decorate a function so that neither it nor what it calls is compiled."""
    disable: Callable[[Function], Function] = torch.compiler.disable  # which has no types
    return disable(function)


def eager_outside(function: Function) -> Function:
    """Decorate a function so that it is not compiled, but what it calls may be."""
    disable: Callable[..., Function] = torch.compiler.disable
    return disable(function, recursive=False)

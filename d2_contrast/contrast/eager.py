"""Functions that torch.compile leaves alone."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch

__all__ = ["eager"]

Function = TypeVar("Function", bound=Callable[..., object])


def eager(function: Function) -> Function:
    """Decorate a function whose shapes depend on its input: torch.compile runs it as it is. The type is kept."""
    return cast(Function, torch.compiler.disable(function))  # type: ignore[no-untyped-call]

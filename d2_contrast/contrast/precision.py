"""The precision of matrix products of float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["float32_product", "float32_products"]


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """Compute products of float32 in full precision, or with tf32 on a GPU in TF32. torch's settings have no effect."""
    gpu = torch.backends.cuda.matmul
    if not hasattr(gpu, "fp32_precision"):  # torch < 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    processor = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    wanted = {gpu: "tf32" if tf32 else "ieee", processor: "ieee"}
    # "none" is read where nobody has set anything, which is full precision: it stays.
    changed = [
        switch
        for switch, value in wanted.items()
        if switch.fp32_precision not in ((value, "none") if value == "ieee" else (value,))
    ]
    own = {switch: _own_setting(switch) for switch in changed}
    try:
        for switch in changed:
            switch.fp32_precision = wanted[switch]
        yield
    finally:
        for switch, value in own.items():
            switch.fp32_precision = value


def _own_setting(switch: Any) -> str:
    """The setting of a switch to put back, "none" if it follows a more general one, which it reads as then."""
    value = switch.fp32_precision
    switch.fp32_precision = "none"
    return "none" if switch.fp32_precision == value else value


def float32_product(a: Tensor, b: Tensor, tf32: bool = False) -> Tensor:
    """The product a @ b of (..., m, k) and (..., k, n), by :func:`float32_products` also for its gradients."""
    return _Product.apply(a, b, tf32)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, tf32: bool) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.tf32 = tf32
        with float32_products(tf32):
            return a @ b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        to_a = float32_product(grad, b.mT, ctx.tf32) if ctx.needs_input_grad[0] else None
        to_b = float32_product(a.mT, grad, ctx.tf32) if ctx.needs_input_grad[1] else None
        return to_a, to_b, None

"""The precision of matrix products of float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["float32_products"]


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
    # "none" means the global setting, which is full precision by default: it stays.
    changed = {
        switch: switch.fp32_precision
        for switch, value in wanted.items()
        if switch.fp32_precision not in ((value, "none") if value == "ieee" else (value,))
    }
    try:
        for switch in changed:
            switch.fp32_precision = wanted[switch]
        yield
    finally:
        for switch, value in changed.items():
            switch.fp32_precision = value

"""Mixed precision: the dtypes that configs name, and processors that compute in bfloat16."""

import re
from pathlib import Path

import torch

AMP_DTYPES = ("float16", "bfloat16")


def amp_dtype(name: str) -> torch.dtype:
    """The dtype that SOLVER.AMP.DTYPE names.

    Raises:
        ValueError: the name is none of AMP_DTYPES.
    """
    if name not in AMP_DTYPES:
        raise ValueError(f'SOLVER.AMP.DTYPE is {name!r}: expected "float16" or "bfloat16"')
    return getattr(torch, name)


def has_native_bfloat16() -> bool:
    """Whether this machine's processor multiplies in bfloat16. Elsewhere it is emulated, slower than float32.

    Known on Linux, on x86 and ARM; False on other systems.
    """
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", described, re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[1].split())

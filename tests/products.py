"""How matrix products are computed, watched while they run."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FULL = {"ieee", "none", "highest"}
TF32 = {"tf32", "high"}


class PrecisionOfProducts(TorchDispatchMode):
    """The precision that products of float32 have on a GPU while operators that multiply run."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            gpu = torch.backends.cuda.matmul
            newer = hasattr(gpu, "fp32_precision")
            self.seen.add(gpu.fp32_precision if newer else torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))

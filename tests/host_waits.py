"""A device without hardware, and a count of how often the host waits for it.

Tensors of the device hold one of the CPU, which computes for them, and say that they are elsewhere. As on a GPU, they
do not mix with tensors of the host.

    with HostWaits() as host:
        model.to(DEVICE)
        ...
    assert host.waits == []
"""

import traceback
from contextlib import ExitStack, nullcontext
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# A name that torch knows, and whose backward pass it runs in the thread of the host.
DEVICE = torch.device("meta")

# Operators of which the host needs a result: a number, or how many there are.
READ_BY_HOST = {
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "bincount"),
        *("unique_consecutive", "unique_dim", "_unique", "_unique2", "_linalg_check_errors"),
    )
}
MIXED = {"aten::copy_", "aten::_to_copy"}


class DeviceTensor(torch.Tensor):
    """A tensor of the device.

    Attributes:
        held: the tensor of the CPU.
    """

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        layout = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype)
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    def tolist(self) -> list:  # which torch refuses to subclasses
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: tensors of the device are for HostWaits")


class HostWaits(TorchDispatchMode):
    """Runs what is computed on the device, and notes where the host waits for it.

    Attributes:
        waits: operator and place of each wait.
        launches: operators that ran on the device, but for views.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.launches = 0
        self._patches = ExitStack()

    def __enter__(self):
        autocast = torch.autocast

        def without_device(device_type, *args, **kwargs):  # torch has no mixed precision there
            return nullcontext() if device_type == DEVICE.type else autocast(device_type, *args, **kwargs)

        self._patches.enter_context(mock.patch("torch.autocast", without_device))
        return super().__enter__()

    def __exit__(self, *raised):
        self._patches.close()
        return super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        of_device = [x for x in tensors if isinstance(x, DeviceTensor)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not of_device and target != DEVICE:
            return func(*args, **kwargs)
        name = func._schema.name
        self._note(func, name, args, kwargs, target)
        hosts = [x for x in tensors if not isinstance(x, DeviceTensor) and x.dim()]
        if hosts and name not in MIXED and target is None:
            raise RuntimeError(f"{name}: tensors of the device beside one of the host, {tuple(hosts[0].shape)}")
        inner = {**kwargs, "device": torch.device("cpu")} if target else kwargs
        out = func(*_held(args), **_held(inner))
        if name == "aten::_local_scalar_dense" or (target and target != DEVICE):
            return out
        if func._schema.name.endswith("_") and of_device and of_device[0].shape != of_device[0].held.shape:
            with torch._C._DisableTorchDispatch():  # such as unsqueeze_: the outside follows
                func(*args, **kwargs)
        known = {id(x.held): x for x in of_device}
        return tree_map(lambda x: _outside(x, known) if isinstance(x, torch.Tensor) else x, out)

    def _note(self, func, name, args, kwargs, target) -> None:
        if not func.is_view:
            self.launches += 1
        if name in READ_BY_HOST:
            self._wait(name)
        elif name == "aten::_to_copy" and target and isinstance(args[0], DeviceTensor) != (target == DEVICE):
            if target != DEVICE or not kwargs.get("non_blocking"):
                self._wait(name)
        elif name == "aten::copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
            if isinstance(args[1], DeviceTensor) or not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
                self._wait(name)
        elif name.startswith("aten::index") and any(x is not None and x.dtype == torch.bool for x in _indices(args)):
            self._wait(name)
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self._wait(name)

    def _wait(self, name: str) -> None:
        ours = [x for x in traceback.extract_stack() if "d2_contrast/" in x.filename and "tests/" not in x.filename]
        self.waits.append(f"{name} {ours[-1].filename}:{ours[-1].lineno}" if ours else name)


def _outside(held: torch.Tensor, known: dict[int, DeviceTensor]) -> DeviceTensor:
    return known[id(held)] if id(held) in known else DeviceTensor(held)


def _held(tree):
    return tree_map(lambda x: x.held if isinstance(x, DeviceTensor) else x, tree)


def _indices(args) -> list:
    return args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else []

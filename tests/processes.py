"""Two processes that talk through gloo, for the tests of what is done in parallel."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_in_two_processes(function: Callable, folder: Path, *args) -> None:
    """Call ``function(rank, *args)`` in two processes of one group, which meet in a file of ``folder``.

    The function must be importable by name, as must be its arguments.
    """
    mp.spawn(_work, (function, folder / "rendezvous", args), nprocs=2)


def _work(rank: int, function: Callable, rendezvous: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=2)
    function(rank, *args)
    dist.barrier()  # who leaves while the other still talks breaks its connection
    # Threads of gloo may still hold tensors; if the interpreter shuts down before they let go, the process aborts.
    os._exit(0)

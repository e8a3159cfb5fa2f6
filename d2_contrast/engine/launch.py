"""Starting one process or several, by ourselves or under torchrun."""

import os
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as spawn
from detectron2.utils import comm


def launch(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Run ``main(args)`` in every process of a job.

    Under torchrun (RANK and WORLD_SIZE are set) this process is one of them. Otherwise ``args.num_gpus`` processes are
    started on this machine, which are one of ``args.num_machines`` equal parts of the job. Processes talk through NCCL
    where there are GPUs and through gloo where there are none.

    Args:
        main: what to run; must be importable by name.
        args: of Detectron2's ``default_argument_parser``.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        local_rank = int(os.environ["LOCAL_RANK"])
        has_gpu = torch.cuda.is_available()
        if has_gpu:
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if has_gpu else "gloo")
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        _work(main, args)
    else:
        spawn(
            _work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )


def _work(main: Callable[[Namespace], object], args: Namespace) -> None:
    try:
        main(args)
        comm.synchronize()  # who leaves while another still talks breaks its connection
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

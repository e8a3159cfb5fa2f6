"""Starting one process or several, by ourselves or under torchrun, and ending them with an exit code."""

import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.synchronize import Lock
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.engine import launch as spawn
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..arrivals import arrive
from ..config import load_config
from ..errors import DEBUG, in_plain_words
from .process_watch import ProcessWatch
from .stop import heeded_signals


def launch(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Run ``main(args)`` in every process of a job.

    Under torchrun (RANK and WORLD_SIZE are set) this process is one of them. Otherwise ``args.num_gpus`` processes are
    started on this machine, which are one of ``args.num_machines`` equal parts of the job. Processes talk through NCCL
    where MODEL.DEVICE is a GPU, and through gloo where it is not, or where there is none.

    A process that is stopped or lost is named after PROCESS_GROUP_TIMEOUT, and the job ends.

    A user's mistake ends in one sentence on stderr and the exit code 2, see :mod:`d2_contrast.errors`; a signal, after
    a checkpoint is saved, in 128 + its number.

    Args:
        main: what to run; must be importable by name.
        args: of :func:`d2_contrast.train.parse_arguments`.
    """
    if getattr(args, "debug", False):
        os.environ[DEBUG] = "1"  # in the processes that are started, too
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        local_rank = int(os.environ["LOCAL_RANK"])
        with in_plain_words(_claim_by_store):
            on_gpu = _uses_gpu(args)
            if on_gpu:
                torch.cuda.set_device(local_rank)
            timeout = _read_timeout(args)
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
            comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
            # If one failed and left while another connects, that one would wait, or fail with an obscure error.
            comm.synchronize()
            with ProcessWatch(os.environ["MASTER_ADDR"], timeout.total_seconds()):
                _run(main, args)
    elif args.num_gpus * args.num_machines == 1:
        with in_plain_words():
            _run(main, args)
    else:
        _start_processes(main, args)


def _start_processes(main: Callable[[Namespace], object], args: Namespace) -> None:
    for number in heeded_signals():
        signal.signal(number, _pass_on)
    claim = multiprocessing.get_context("spawn").Lock()
    try:
        with in_plain_words():
            timeout = _read_timeout(args)
            if not _uses_gpu(args):
                os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Detectron2 chooses NCCL in processes that see a GPU
            spawn(
                _work,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, timeout, claim),
                timeout=timeout,
            )
    except ProcessExitedException as error:
        if error.exit_code < 0:
            print(f"A process of this job was killed by {error.signal_name}", file=sys.stderr)
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


def _uses_gpu(args: Namespace) -> bool:
    """Whether the processes compute on GPUs: MODEL.DEVICE says so, and there are some."""
    return load_config(args.config_file, args.opts).MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def _pass_on(number: int, _frame) -> None:
    processes = multiprocessing.active_children()
    for process in processes:
        os.kill(process.pid, number)
    if not processes:
        sys.exit(128 + number)


def _work(main: Callable[[Namespace], object], args: Namespace, timeout: timedelta, claim: Lock) -> None:
    address = urlparse(args.dist_url).hostname or "127.0.0.1"
    with in_plain_words(partial(claim.acquire, block=False)):
        with ProcessWatch(address, timeout.total_seconds()):
            _run(main, args)


def _read_timeout(args: Namespace) -> timedelta:
    seconds = load_config(args.config_file, args.opts).PROCESS_GROUP_TIMEOUT
    if seconds <= 0:
        raise ValueError(f"PROCESS_GROUP_TIMEOUT is {seconds}: expected seconds, more than 0")
    return timedelta(seconds=seconds)


def _claim_by_store() -> bool:
    """Whether this process is the first on its machine that asks torchrun's store; True if there is none."""
    key = f"d2_contrast/error/{os.environ.get('GROUP_RANK')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=10)).add(key, 1) == 1
    except Exception:  # the process that had it has ended
        return True


def _run(main: Callable[[Namespace], object], args: Namespace) -> None:
    try:
        main(args)
        arrive()
        comm.synchronize()  # leaving now would break the connection of those that still talk
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

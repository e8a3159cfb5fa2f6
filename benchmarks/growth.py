"""Memory and open files of a long run: do they grow?

python -m benchmarks.growth --iterations 2000

A small network with the losses is trained on a few pictures of the embedded dataset, with workers, checkpoints and
evaluations on the way. The resident memory (RSS) and the open file descriptors of the process and of the workers of its
data loader after the last iteration are compared with those after iteration 200.
"""

import argparse
import os
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.engine import HookBase

from benchmarks.common import markdown
from benchmarks.resume import make_options
from d2_contrast.config_files import find_config
from d2_contrast.engine import Trainer, setup

PAGE = os.sysconf("SC_PAGE_SIZE")
ALLOWED = 0.05  # growth since the first look, as a share


class Look(HookBase):
    """Note the memory (MB, 10^6 bytes) and the descriptors of a process and of those that it has started."""

    def __init__(self, period: int):
        self.period = period
        self.rows: list[tuple[int, float, int]] = []

    def after_step(self) -> None:
        if (done := self.trainer.iter + 1) % self.period == 0:
            processes = [Path("/proc/self"), *_children()]
            memory = sum(int((process / "statm").read_text().split()[1]) for process in processes)
            descriptors = sum(len(list((process / "fd").iterdir())) for process in processes)
            self.rows.append((done, memory * PAGE / 1e6, descriptors))


def _children() -> list[Path]:
    tasks = Path("/proc/self/task").iterdir()
    return [Path("/proc", number) for task in tasks for number in (task / "children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--first", type=int, default=200, help="iteration that the end is compared with")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        options = make_options(
            Path(root),
            args.iterations,
            period=args.first // 2,
            SOLVER__ACCUMULATION_STEPS=1,
            SOLVER__AMP__ENABLED=False,
            TEST__EVAL_PERIOD=args.first // 2,
            OUTPUT_DIR=f"{root}/output",
        )
        config = find_config("shapes/uper_r18_contrast")
        trainer = Trainer(setup(Namespace(config_file=config, opts=options, eval_only=False)))
        look = Look(args.first)
        trainer.register_hooks([look])
        trainer.train()
    print(markdown(["after iterations", "RSS, MB", "open descriptors"], look.rows))
    growth = [last / first - 1 for first, last in zip(look.rows[0][1:], look.rows[-1][1:])]
    print(f"\nGrowth since iteration {args.first}: RSS {growth[0]:+.1%}, descriptors {growth[1]:+.1%}")
    raise SystemExit(max(growth) > ALLOWED)


if __name__ == "__main__":
    main()

"""Train or evaluate a network, as Detectron2's own train_net.py does; keys and values at the end override the config.

d2-contrast train --config-file shapes/uper_r18_contrast
d2-contrast train --config-file shapes/uper_r18_contrast --eval-only MODEL.WEIGHTS output/.../model_final.pth
torchrun --nproc-per-node 2 -m d2_contrast.train --config-file ...

In a clone `python train_net.py` is the same.
"""

import argparse
import sys
from collections.abc import Sequence

from .cli import verb_parser
from .errors import DEBUG, EXIT_CODE, in_plain_words


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line: the options of Detectron2's ``default_argument_parser`` and this project's."""
    parser = verb_parser("train", __doc__)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="a config, by its path or its name in this project")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one")
    add("--overwrite", action="store_true", help="start anew in an OUTPUT_DIR that holds a run, which is moved aside")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or with --resume the last checkpoint")
    add(
        "--num-gpus", type=count, default=1, metavar="N", help="processes on this machine, each with a GPU if there are"
    )
    add("--num-machines", type=count, default=1, metavar="N", help="machines that train together")
    add("--machine-rank", type=int, default=0, metavar="I", help="which of them this is, from 0")
    add("--dist-url", default="auto", metavar="URL", help="where processes meet: tcp://node0:29500; auto: a free port")
    add("--debug", action="store_true", help=f"show tracebacks of errors, as {DEBUG}=1 does")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    return parser


def count(text: str) -> int:
    """The type of an option that counts processes or machines."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line.

    Args:
        arguments: those of the process by default. Without any the help is shown, and the process ends.
    """
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(EXIT_CODE)
    args = parser.parse_args(arguments)
    if not 0 <= args.machine_rank < args.num_machines:
        parser.error(f"--machine-rank is {args.machine_rank}: expected 0 to {args.num_machines - 1}, by --num-machines")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--dist-url is auto, for one machine alone: expected a port of the first one, tcp://node0:29500")
    return args


def run(args: argparse.Namespace) -> dict:
    """Train, or evaluate with ``--eval-only``, in this process, and return the results of the evaluation."""
    from .engine import evaluate, setup, train

    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    return train(cfg, resume=args.resume)


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate as a command line says, in as many processes; returns the exit code."""
    args = parse_arguments(argv)
    with in_plain_words():
        from .engine import launch

    launch(run, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

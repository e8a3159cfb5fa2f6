"""Run a training step again that ended a run because a loss or a gradient was not finite.

d2-contrast replay output/.../non_finite_0001234_rank0.pth

The run has written the file: config, weights, batches and the seeds of the step. Says what is not finite, and which
module is the first to give such an output.
"""

import argparse
import sys

from .cli import verb_parser
from .errors import in_plain_words


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("replay", __doc__)
    parser.add_argument("file", metavar="FILE", help="non_finite_*.pth in the OUTPUT_DIR of a run")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Run the step of a file again and print what is found; returns the exit code."""
    args = build_parser().parse_args(argv)
    from .engine.step_dump import replay_step

    print(f"Running the step in {args.file} again ...", file=sys.stderr, flush=True)
    print("\n".join(replay_step(args.file)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run a training step again that ended a run because a loss or a gradient was not finite.

python -m d2_contrast.replay output/.../non_finite_0001234_rank0.pth

The run has written the file: config, weights, batches and random state of the step. Says what is not finite, and which
module is the first to give such an output.
"""

import argparse

from .errors import in_plain_words


def main(arguments: list[str] | None = None) -> None:
    """Run the step of a dump again."""
    parser = argparse.ArgumentParser(
        "python -m d2_contrast.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="non_finite_*.pth in the OUTPUT_DIR of a run")
    args = parser.parse_args(arguments)
    with in_plain_words():
        from .engine.step_dump import replay_step  # after --help, since it takes seconds

        print("\n".join(replay_step(args.file)))


if __name__ == "__main__":
    main()

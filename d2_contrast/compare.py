"""Compare two trained runs on the same dataset: scores, features, and pictures that put both side by side.

d2-contrast compare output/shapes/uper_r18 output/shapes/uper_r18_contrast
d2-contrast compare output/shapes/uper_r18 output/shapes/uper_r18_contrast --opts TEST.AUG.ENABLED True

A run is a folder that a training had as OUTPUT_DIR; the first is the baseline. Both are evaluated again, as their
configs and --opts say. Written are comparison.md with all tables and pictures, and comparison.json.
"""

import argparse
import sys
from pathlib import Path

from .cli import given_path, log_to_terminal, verb_parser
from .errors import in_plain_words
from .output import to_look_at


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("compare", __doc__)
    parser.add_argument("baseline", metavar="BASELINE", help="folder of the run to compare with")
    parser.add_argument("run", metavar="RUN", help="folder of the run to compare")
    parser.add_argument("--names", nargs=2, metavar="NAME", help="what to call the two; default: by their folders")
    parser.add_argument("--dataset", help="a registered dataset with labels; default: the first of DATASETS.TEST")
    parser.add_argument("--output", type=given_path, help="folder for the files; default: comparison/ in RUN")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to override in all")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Compare two runs and print a summary; returns the exit code."""
    args = build_parser().parse_args(argv)
    from .analysis import check_comparable, common_dataset, compare_runs, load_runs, summary, write_comparison

    log_to_terminal("d2_contrast.analysis")
    output = args.output or Path(args.run) / "comparison"
    baseline, run = load_runs([args.baseline, args.run], args.names, args.opts)
    dataset, dataset_dicts = common_dataset([baseline, run], args.dataset)
    check_comparable(baseline, run, dataset)
    output.mkdir(parents=True, exist_ok=True)
    comparison = compare_runs([baseline, run], dataset, dataset_dicts, output)
    files = write_comparison(comparison, output)
    print(summary(comparison))
    print(to_look_at(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())

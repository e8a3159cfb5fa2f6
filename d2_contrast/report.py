"""Show what trained runs learned, one beside the other, on one HTML page that needs no network.

d2-contrast report output/shapes/uper_r18
d2-contrast report output/shapes/uper_r18 output/shapes/uper_r18_contrast

A run is a folder that a training had as OUTPUT_DIR; the first is the baseline. All are evaluated again, as their
configs and --opts say. Written are report.html, which holds everything, and comparison/ with the same tables as
Markdown and JSON, and pictures as files.
"""

import argparse
import sys
from pathlib import Path

from .cli import given_path, log_to_terminal, verb_parser
from .errors import in_plain_words
from .output import to_look_at

PAGE = "report.html"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; the first is the baseline")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call the runs; default: by their folders")
    parser.add_argument("--dataset", help="a registered dataset with labels; default: the first of DATASETS.TEST")
    parser.add_argument("--output", type=given_path, help="folder for the files; default: that of the last RUN")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to override in all")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Write the report of some runs; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.output and args.output.suffix.lower() in (".html", ".htm"):
        parser.error(f"--output is {args.output}: expected a folder, into which {PAGE} is written")
    from .analysis import (
        check_comparable,
        common_dataset,
        compare_runs,
        load_runs,
        summary,
        write_comparison,
        write_page,
    )

    log_to_terminal("d2_contrast.analysis")
    output = args.output or Path(args.runs[-1])
    runs = load_runs(args.runs, args.names, args.opts)
    dataset, dataset_dicts = common_dataset(runs, args.dataset)
    for run in runs:
        check_comparable(runs[0], run, dataset)
    folder = output / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    comparison = compare_runs(runs, dataset, dataset_dicts, folder)
    files = write_comparison(comparison, folder)
    page = write_page(comparison, files, output / PAGE)
    print(summary(comparison))
    print(to_look_at([page, *files]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

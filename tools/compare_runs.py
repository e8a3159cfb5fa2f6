#!/usr/bin/env python3
"""Compare two trained runs on the same dataset: scores, features, and pictures that put both side by side.

python tools/compare_runs.py output/shapes/uper_r18 output/shapes/uper_r18_contrast

A run is a folder that train_net.py had as OUTPUT_DIR; the first is the baseline. Both are evaluated again, as their
configs say. Written are comparison.md with all tables and pictures, and comparison.json.
"""

import argparse
import logging
import sys
from pathlib import Path

from d2_contrast.analysis import (
    check_comparable,
    common_dataset,
    compare_runs,
    load_runs,
    summary,
    write_comparison,
)
from d2_contrast.errors import message_of


def main(argv: list[str] | None = None) -> int:
    """Compare the runs named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", metavar="BASELINE", help="folder of the run to compare with")
    parser.add_argument("run", metavar="RUN", help="folder of the run to compare")
    parser.add_argument("--names", nargs=2, metavar="NAME", help="what to call the two; default: by their folders")
    parser.add_argument("--dataset", help="a registered dataset with labels; default: the first of DATASETS.TEST")
    parser.add_argument("--output", type=Path, help="folder for the files; default: comparison/ in RUN")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("d2_contrast.analysis").setLevel(logging.INFO)

    output = args.output or Path(args.run) / "comparison"
    try:
        runs = load_runs([args.baseline, args.run], args.names)
        dataset, dataset_dicts = common_dataset(runs, args.dataset)
        check_comparable(*runs, dataset)
        output.mkdir(parents=True, exist_ok=True)
        comparison = compare_runs(*runs, dataset, dataset_dicts, output)
        files = write_comparison(comparison, output)
    except (KeyError, OSError, ValueError) as error:
        print(f"{parser.prog}: {message_of(error)}", file=sys.stderr)
        return 2
    print(summary(comparison))
    print("\n".join(["To look at:", *(f"  {file}" for file in files)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

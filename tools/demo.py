#!/usr/bin/env python3
"""Train a small network without and with the contrastive losses on the embedded dataset, and compare the two.

    python tools/demo.py           # again: goes on where it was stopped

Both train at the same time, each on half of the cores, by configs/ablations/demo.yaml, in bfloat16 where the processor
multiplies in it. The demo ends with their mIoU, what their feature maps know about classes, and all of it on one
page, report.html. Keys and values override both configs.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from d2_contrast.ablation import Store, read_spec
from d2_contrast.modeling.precision import has_native_bfloat16

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "configs/ablations/demo.yaml"
BFLOAT16 = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]


def main(argv: list[str] | None = None) -> int:
    """Train what is not trained yet and compare; returns the exit code of what fails first, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for all files")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to override in both")
    args = parser.parse_args(argv)
    overrides = [*(BFLOAT16 if has_native_bfloat16() else []), *args.overrides]

    command = [sys.executable, "-m", "d2_contrast.ablate", str(SPEC), "--jobs", "2", "--output", str(args.output)]
    if code := subprocess.call([*command, *overrides]):
        return code
    store = Store(args.output, args.output / "results")
    runs = read_spec(str(SPEC), overrides).runs
    command = [sys.executable, "-m", "d2_contrast.report", *(str(store.folder(run)) for run in runs)]
    command += ["--names", *(run.row.name for run in runs), "--output", str(args.output)]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())

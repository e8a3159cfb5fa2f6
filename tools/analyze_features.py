#!/usr/bin/env python3
"""Measure what the feature maps of trained networks know about classes, at the same positions for all of them.

python tools/analyze_features.py output/shapes/uper_r18 output/shapes/uper_r18_contrast
python tools/analyze_features.py output/camvid/uper_mobilenetv2_contrast_bs4_2400 --dataset camvid_11_test --maps p2 p3

A run is a folder that train_net.py had as OUTPUT_DIR. The table on the terminal is also written to features.md and
features.json, with t-SNE maps of each feature map (tsne.png) and of all scales together (joint.png). What the measures
mean: docs/evaluation.md.
"""

import argparse
import logging
import sys
from pathlib import Path

from d2_contrast.analysis import (
    analyze_features,
    common_dataset,
    draw_features,
    features_markdown,
    load_runs,
    write_features,
)
from d2_contrast.errors import message_of


def main(argv: list[str] | None = None) -> int:
    """Analyse the runs named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--dataset", help="a registered dataset with labels; default: the first of DATASETS.TEST")
    parser.add_argument("--maps", nargs="+", metavar="MAP", help="feature maps; default: those that are contrasted")
    parser.add_argument("--output", type=Path, help="folder for the files; default: features/ in the first run")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("d2_contrast.analysis").setLevel(logging.INFO)

    output = args.output or Path(args.runs[0]) / "features"
    try:
        runs = load_runs(args.runs)
        dataset, dataset_dicts = common_dataset(runs, args.dataset)
        output.mkdir(parents=True, exist_ok=True)
        analysis = analyze_features(runs, dataset, dataset_dicts, args.maps)
        files = write_features(analysis, output) + draw_features(analysis, runs[0].cfg.VISUALIZE.TSNE_POINTS, output)
    except (KeyError, OSError, ValueError) as error:
        print(f"{parser.prog}: {message_of(error)}", file=sys.stderr)
        return 2
    print(features_markdown(analysis))
    print("\n".join(["To look at:", *(f"  {file}" for file in files)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

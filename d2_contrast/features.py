"""Measure what the feature maps of trained networks know about classes, at the same positions for all of them.

d2-contrast features output/shapes/uper_r18 output/shapes/uper_r18_contrast
d2-contrast features output/camvid/uper_mobilenetv2_contrast_bs4_1600 --dataset camvid_11_test --maps p2 p3

A run is a folder that a training had as OUTPUT_DIR. The table on the terminal is also written to features.md and
features.json, with t-SNE maps of each feature map (tsne.png) and of all scales together (joint.png). What the measures
mean: docs/evaluation.md.
"""

import argparse
import sys
from pathlib import Path

from .cli import given_path, log_to_terminal, verb_parser
from .errors import in_plain_words
from .output import to_look_at


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("features", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--dataset", help="a registered dataset with labels; default: the first of DATASETS.TEST")
    parser.add_argument("--maps", nargs="+", metavar="MAP", help="feature maps; default: those that are contrasted")
    parser.add_argument("--output", type=given_path, help="folder for the files; default: features/ in the first run")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to override in all")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Measure the features of runs and print a table; returns the exit code."""
    args = build_parser().parse_args(argv)
    from .analysis import (
        analyze_features,
        common_dataset,
        draw_features,
        features_markdown,
        load_runs,
        write_features,
    )

    log_to_terminal("d2_contrast.analysis")
    output = args.output or Path(args.runs[0]) / "features"
    runs = load_runs(args.runs, overrides=args.opts)
    dataset, dataset_dicts = common_dataset(runs, args.dataset)
    output.mkdir(parents=True, exist_ok=True)
    analysis = analyze_features(runs, dataset, dataset_dicts, args.maps)
    files = write_features(analysis, output) + draw_features(analysis, runs[0].cfg.VISUALIZE.TSNE_POINTS, output)
    print(features_markdown(analysis))
    print(to_look_at(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())

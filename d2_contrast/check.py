"""Check a dataset on disk: are all files there and readable, and what is in the labels?

d2-contrast check cityscapes_19_train
d2-contrast check garden_train --config-file garden.yaml

Prints the classes with their share of images and pixels and writes output/check/NAME/browse.png, random samples after
the augmentation of the config. Problems are listed by file; the exit code is 1 if there are any. What may be right but
looks odd, such as a class without a pixel, is a warning.
"""

import argparse
import os
import sys

from .cli import given_path, log_to_terminal, verb_parser
from .errors import explain, in_plain_words


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("check", __doc__)
    parser.add_argument("name", metavar="NAME", help="name of a registered dataset")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="registers its FOLDERS; its INPUT augments browse.png"
    )
    parser.add_argument(
        "--output", type=given_path, metavar="FOLDER", help="folder for browse.png (default: output/check/NAME)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Check a dataset and print what is found; returns 1 if there are problems."""
    args = build_parser().parse_intermixed_args(argv)
    from .config import load_config
    from .data import check_dataset, register_folders
    from .data.files import as_file_name, limit_pixels
    from .extras import MissingExtraError

    log_to_terminal("d2_contrast.data")
    cfg = load_config(args.config_file, args.opts)
    limit_pixels(cfg.INPUT.MAX_PIXELS)
    register_folders(cfg.DATASETS.FOLDERS)
    check = check_dataset(args.name)
    labelled = sum("sem_seg_file_name" in sample for sample in check.samples)
    print(f"{args.name}: {len(check.samples)} images, {labelled} with labels")
    if check.counted:
        print(check.class_table())
    problems, warnings = list(check.problems), list(check.warnings)
    if check.intact:
        folder = args.output or os.path.join("output", "check", as_file_name(args.name))
        path = os.path.join(folder, "browse.png")
        try:
            from .visualize import draw_samples, save

            os.makedirs(folder, exist_ok=True)
            save(draw_samples(cfg, args.name, check.intact, augmented=bool(args.config_file)), path)
            print(f"Samples: {path}")
        except MissingExtraError as error:
            warnings.append(f"No samples are drawn: {error}")
        except Exception as error:
            if (sentence := explain(error)) is None:
                raise
            problems.append(f"No samples are drawn: {sentence}")
    for warning in warnings:
        print(f"Warning: {warning}")
    count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
    print("\n".join([*problems, count] if problems or warnings else ["No problems"]))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

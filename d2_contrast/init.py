"""Look at images and label maps of your own, and propose a config for them.

d2-contrast init garden/images garden/labels
d2-contrast init garden                             # both below one folder, or in one folder

Known are folders for kinds and splits (images, masks, train, valid), names such as bed_mask.png, exports of CVAT and
Roboflow, ids, palettes, colours, and masks of 0 and 255. Names of classes come from _classes.csv, labelmap.txt,
class_dict.csv, label_colors.txt or classes.txt. Writes NAME.yaml and lists of images beside it, and says what was
decided that may be wrong, and what to type next.
"""

import argparse
import shlex
import sys
from pathlib import Path

from .cli import PROGRAM, given_path, verb_parser
from .errors import in_plain_words


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("init", __doc__)
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the images, or of images and label maps")
    parser.add_argument("labels", type=Path, nargs="?", metavar="LABELS", help="folder of the label maps")
    parser.add_argument("--name", help="what names of datasets begin with (default: the name of the folder)")
    parser.add_argument("--output", type=given_path, metavar="FILE.yaml", help="the config (default: NAME.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Propose a config and write it; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.output and args.output.suffix not in (".yaml", ".yml"):
        parser.error(f"--output is {args.output}: expected the name of a config, such as garden.yaml")
    from .config import default_config
    from .data.files import as_file_name, limit_pixels
    from .own_data import name_of, propose

    limit_pixels(default_config().INPUT.MAX_PIXELS)
    name = as_file_name(args.name or (args.output.stem if args.output else name_of(args.images)))
    config = args.output or Path(f"{name}.yaml")
    proposal = propose(args.images, args.labels, config, name)
    if not args.overwrite and (there := [path for path in proposal.files if path.exists()]):
        raise FileExistsError(f"{there[0]} is there already: name another file by --output, or give --overwrite")
    proposal.write()

    print("\n".join(proposal.summary))
    print("".join(f"Check: {note}.\n" for note in proposal.notes), end="")
    also = f", and {len(proposal.files) - 1} files beside it" if len(proposal.files) > 1 else ""
    print(f"Written: {config}{also}\nNext:")
    steps = [
        ("check", f"{name}_train", "--config-file", str(config)),
        ("train", "--config-file", str(config)),
        (
            "predict",
            "--weights",
            f"output/{name}",
            "--input",
            str(proposal.example),
            "--output",
            f"output/{name}/predictions",
        ),
    ]
    print("\n".join(f"  {shlex.join((PROGRAM, *words))}" for words in steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())

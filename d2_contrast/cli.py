"""The command ``d2-contrast VERB``.

A verb is a module of this package with ``build_parser`` and ``main``. It imports nothing heavy before its command line
is parsed, so that help is there at once.
"""

import argparse
import difflib
import logging
import os
import sys
from importlib import import_module
from pathlib import Path

from . import __version__
from .errors import EXIT_CODE, in_plain_words

PROGRAM = "d2-contrast"

# Every verb with what it does, in the order in which a project needs them.
VERBS = {
    "init": "look at images and labels of your own, and propose a config for them",
    "check": "check a dataset: its files, its label values, how frequent its classes are",
    "train": "train, resume or evaluate a network: train_net.py",
    "predict": "segment images, folders, videos or a camera, and write label maps and pictures",
    "export": "write a trained network as ONNX, torch.export or TorchScript, compared with PyTorch",
    "analyze": "count the parameters and operations of a network, part by part",
    "features": "measure what the feature maps of trained networks know about classes",
    "compare": "compare two trained runs: scores, features, pictures",
    "report": "show one or more trained runs on one HTML page",
    "ablate": "run rows x seeds of a plan and collect them into one table",
    "replay": "repeat the training step that ended a run with a number that is not finite",
    "env": "print versions, machine and settings, for the report of a fault",
    "completion": "print what makes a shell complete verbs and options",
}

EPILOG = f"""\
examples:
  {PROGRAM} train --config-file shapes/uper_r18_contrast
  {PROGRAM} init garden/images garden/labels
  {PROGRAM} check garden_train --config-file garden.yaml
  {PROGRAM} report output/shapes/uper_r18 output/shapes/uper_r18_contrast
  {PROGRAM} ablate ablations/shapes_ladder --jobs 2

`{PROGRAM} VERB --help` tells the options of a verb; it is also run as `python -m d2_contrast.VERB`.
Exit codes: 0 fine, 1 something failed, 2 a mistake on the command line or in a file, 130 interrupted.
"""


def verb_parser(verb: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the command line of a verb, with the docstring of its module as its help."""
    return argparse.ArgumentParser(
        prog=f"{PROGRAM} {verb}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def given_path(text: str) -> Path:
    """The type of an option that names a file or a folder; "~" is expanded, which shells do not behind "=".

    Empty text, as of a variable that is not set, is none.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, found empty text")
    return Path(os.path.expanduser(text))


def log_to_terminal(name: str) -> None:
    """Show the progress messages of a part of this package on stderr."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger(name).setLevel(logging.INFO)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line up to the verb."""
    width = max(map(len, VERBS))
    listed = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB [...]",
        description=f"Semantic segmentation with multi-scale and cross-scale contrastive losses.\n\nverbs:\n{listed}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("verb", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the verb that a command line names; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    if not words:
        parser.print_help(sys.stderr)
        return EXIT_CODE
    verb, *arguments = words
    if verb not in VERBS:
        verb = parser.parse_args(words[:1]).verb  # --help and --version end here
        similar = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"do you mean {similar[0]}?" if similar else f"those that there are: {', '.join(VERBS)}"
        parser.error(f"there is no verb {verb!r}: {hint}")
    with in_plain_words():
        return import_module(f".{verb}", __package__).main(arguments)


if __name__ == "__main__":
    sys.exit(main())

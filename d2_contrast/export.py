"""Write a trained network as one file that runs without this package: ONNX, torch.export or TorchScript.

d2-contrast export --weights output/shapes/uper_r18_contrast --output model.onnx
d2-contrast export --config-file garden.yaml --weights output/garden/model_final.pth --output garden.pt2
d2-contrast export --weights model_final.pth --config-file garden.yaml --output labels.onnx --argmax

The file takes images (batch, 3, height, width), float32 from 0 to 255, of any number and size. It normalises and pads
them itself, and gives logits (batch, classes, height, width). It is kept only if it gives what PyTorch gives, at
several sizes. docs/export.md shows how to run it.
"""

import argparse
import sys

from .cli import given_path, verb_parser
from .errors import in_plain_words

# The usual ending of the name of a file, by format.
SUFFIXES = {"onnx": ".onnx", "torch.export": ".pt2", "torchscript": ".pt"}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("export", __doc__)
    parser.add_argument("--weights", required=True, metavar="PATH", help="checkpoint, or the folder of a run")
    parser.add_argument("--config-file", default="", metavar="FILE", help="default: config.yaml beside the weights")
    parser.add_argument("--output", required=True, type=given_path, metavar="FILE", help="file to write")
    parser.add_argument(
        "--format", choices=SUFFIXES, help="default: by the name of the output, " + ", ".join(SUFFIXES.values())
    )
    parser.add_argument("--argmax", action="store_true", help="give label maps of train ids instead of logits")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Export a network; returns the exit code, 1 if the exported one is not exact."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    kind = args.format or next((kind for kind, end in SUFFIXES.items() if end == args.output.suffix), None)
    if kind is None:
        parser.error(f"--output {args.output}: name a --format, or end the name with {' or '.join(SUFFIXES.values())}")
    with in_plain_words():
        # These take seconds, so they come after --help.
        from .data import register_folders
        from .engine.export import InexactExportError, export_network
        from .engine.setup import check_names
        from .engine.trained import load_network, read_trained

        cfg = read_trained(args.weights, args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        if args.output.exists() and args.output.samefile(cfg.MODEL.WEIGHTS):
            raise ValueError(f"--output {args.output} is the file of the weights: name another one")
        check_names(cfg)
        register_folders(cfg.DATASETS.FOLDERS)
        model, _ = load_network(cfg, cfg.MODEL.WEIGHTS)
        print(f"Tracing the network and comparing the result; {kind} ...", file=sys.stderr, flush=True)
        try:
            comparisons = export_network(cfg, model, args.output, kind, argmax=args.argmax)
        except InexactExportError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 1
    print(args.output)
    for comparison in comparisons:
        print(f"  {comparison}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

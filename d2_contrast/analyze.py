"""Count the parameters and operations of a config's network, part by part, with and without its contrastive branch.

d2-contrast analyze --config-file cityscapes/hrnet_w48_contrast_bs12_120k
d2-contrast analyze --config-file ade20k/uper_swin_t_bs16_160k --size 512 512

Operations are multiply-adds of convolutions, matrix products, norms and resizing, counted by fvcore on one image. The
losses are not among them: those of the contrastive branch depend on the anchors that a batch has.
"""

import argparse
import sys

from .cli import verb_parser
from .errors import in_plain_words


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("analyze", __doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the network")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="pixels; default: the crop")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Count, and print a table; returns the exit code."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    if args.size and min(args.size) < 1:
        parser.error(f"--size is {args.size[0]} {args.size[1]}: expected pixels from 1 on")
    from tabulate import tabulate
    from tqdm import tqdm

    from . import modeling  # noqa: F401, registers the networks
    from .config import load_config
    from .modeling import cost

    cfg = load_config(args.config_file, args.opts)
    with tqdm(total=2 + cfg.MODEL.CONTRAST.ENABLED, desc="counting", disable=None, leave=False) as bar:
        model = cost.build(cfg, contrast=True)
        image = cost.input_image(cfg, model, args.size)
        training = cost.count(cost.Training(model), image)
        bar.update()
        inference = cost.count(cost.Inference(model), image)
        bar.update()
        plain = cost.count(cost.Inference(cost.build(cfg, contrast=False)), image) if cfg.MODEL.CONTRAST.ENABLED else {}

    total = inference[""]
    rows = [("backbone.bottom_up", *inference["backbone.bottom_up"])] if "backbone.bottom_up" in inference else []
    rows += [(name, *inference[name]) for name in ("backbone", "sem_seg_head")]
    rows += [("inference", *total)]
    rows += [(name, *training[name]) for name in ("aux_head", "projectors") if any(training.get(name, ()))]
    rows += [("training", *training[""])]
    table = [
        (name, f"{p / 1e6:.3f}", f"{p / total[0]:.1%}", f"{o / 1e9:.3f}", f"{o / total[1]:.1%}") for name, p, o in rows
    ]
    print(f"One image of {image.shape[2]} x {image.shape[3]} pixels. Shares are of inference.")
    headers = ["part", "parameters (M)", "share", "multiply-adds (G)", "share"]
    print(tabulate(table, headers, disable_numparse=True, stralign="right"))
    if plain:
        parameters, operations = plain[""]
        print(
            f"Without the contrastive branch inference takes {parameters / 1e6:.3f} M parameters and "
            f"{operations / 1e9:.3f} G multiply-adds: "
            + ("the branch costs nothing there." if plain[""] == total else "the branch has a cost there!")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Count the parameters and operations of a config's network, part by part, with and without its contrastive branch.

python tools/analyze_model.py --config-file configs/cityscapes/hrnet_w48_contrast_bs12_120k.yaml
python tools/analyze_model.py --config-file configs/ade20k/uper_swin_t_bs16_160k.yaml --size 512 512

Operations are multiply-adds of convolutions, matrix products, norms and resizing, counted by fvcore on one image. The
losses are not among them: those of the contrastive branch depend on the anchors that a batch has.
"""

import argparse
import sys

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import Tensor, nn

import d2_contrast.modeling  # noqa: F401, registers the networks
from d2_contrast.config import load_config


class Inference(nn.Module):
    """What a segmentor runs for a prediction, between normalising the image and resizing the logits to it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.sem_seg_head = model.sem_seg_head

    def forward(self, image: Tensor) -> Tensor:
        """Map (1, 3, H, W) to logits (1, K, H, W)."""
        return self.sem_seg_head(self.backbone(image))[0]


class Training(Inference):
    """The same with auxiliary head and projectors: what a segmentor runs in training, but for the losses.

    Projectors are counted at all positions. A training applies their last layer to sampled positions alone, and with
    MODEL.CONTRAST.PROJECT "anchors" all of their layers.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.aux_head = model.aux_head
        self.projectors = model.contrast.projectors if model.contrast is not None else nn.ModuleDict()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (1, 3, H, W) to logits, auxiliary logits and embeddings."""
        features = self.backbone(image)
        outputs = [self.sem_seg_head(features)[0]]
        if self.aux_head is not None:
            outputs.append(self.aux_head(features)[0])
        return outputs + [projector(features[name]) for name, projector in self.projectors.items()]


def count(module: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """Parameters and operations of each submodule by its name; "" is the whole."""
    analysis = FlopCountAnalysis(module.eval(), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    operations = analysis.by_module()
    return {
        name: (sum(p.numel() for p in part.parameters()), operations[name]) for name, part in module.named_modules()
    }


def build(cfg: CfgNode, contrast: bool) -> nn.Module:
    """Build the network of a config with random weights, on the CPU, with or without its contrastive branch."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAINED = False
    cfg.MODEL.CONTRAST.ENABLED = contrast and cfg.MODEL.CONTRAST.ENABLED
    return build_model(cfg)


def main(argv: list[str] | None = None) -> int:
    """Analyse the network of a config and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the network")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="pixels; default: the crop")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)

    model = build(cfg, contrast=True)
    # Networks run on images that are padded to a multiple of this.
    side = max(model.backbone.size_divisibility, 1)
    height, width = (-(-length // side) * side for length in args.size or cfg.INPUT.CROP.SIZE)
    image = torch.zeros(1, 3, height, width)
    training = count(Training(model), image)
    inference = count(Inference(model), image)

    total = inference[""]
    rows = [("backbone.bottom_up", *training["backbone.bottom_up"])] if "backbone.bottom_up" in training else []
    rows += [(name, *training[name]) for name in ("backbone", "sem_seg_head")]
    rows += [("inference", *total)]
    rows += [(name, *training[name]) for name in ("aux_head", "projectors") if any(training.get(name, ()))]
    rows += [("training", *training[""])]
    table = [
        (name, f"{p / 1e6:.3f}", f"{p / total[0]:.1%}", f"{o / 1e9:.3f}", f"{o / total[1]:.1%}") for name, p, o in rows
    ]
    print(f"One image of {height} x {width} pixels. Shares are of inference.")
    print(
        tabulate(table, ("part", "parameters (M)", "share", "GFLOPs", "share"), disable_numparse=True, stralign="right")
    )

    if cfg.MODEL.CONTRAST.ENABLED:
        plain = count(Inference(build(cfg, contrast=False)), image)
        print(
            f"Without the contrastive branch inference takes {plain[''][0] / 1e6:.3f} M parameters and "
            f"{plain[''][1] / 1e9:.3f} GFLOPs: "
            + ("the branch costs nothing there." if plain[""] == total else "the branch has a cost there!")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The nine networks of the paper at full size in every format: difference from PyTorch, time, size of the file.

python -m benchmarks.export [--formats onnx torchscript torch.export] [--networks uper_swin_t ...] [--output FILE]

Weights are random, with norms whose statistics were taken on the images, so that logits have the size that they have in
trained networks.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from benchmarks.common import machine, markdown
from d2_contrast.config import load_config
from d2_contrast.config_files import CONFIGS
from d2_contrast.engine.export import FORMATS, InexactExportError, export_network, make_images
from d2_contrast.export import SUFFIXES

NETWORKS = sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml"))
HEADER = ["network", "format", "largest difference", "of logits up to", "CPU seconds", "MB"]


def build(name: str) -> tuple[CfgNode, nn.Module]:
    """One of the networks for 19 classes, with random weights."""
    torch.manual_seed(0)
    norms = [item for key in ("BACKBONE", "UPER", "SEM_SEG_HEAD") for item in (f"MODEL.{key}.NORM", "BN")]
    cfg = load_config(
        str(CONFIGS / "models" / f"{name}.yaml"),
        ["MODEL.META_ARCHITECTURE", "ContrastiveSegmentor", "MODEL.DEVICE", "cpu", *norms]
        + ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19", "INPUT.FORMAT", "RGB"],
    )
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the last batch
    with torch.no_grad():
        images = make_images(model, (2, 96, 128))
        model.backbone.train()
        features = model.backbone((images - model.pixel_mean) / model.pixel_std)
        for module in model.sem_seg_head.modules():
            module.training = isinstance(module, nn.BatchNorm2d)
        model.sem_seg_head(features)
    return cfg, model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--output", type=Path, help="append the table to this file")
    args = parser.parse_args()
    print(machine())
    rows = []
    for name in args.networks:
        cfg, model = build(name)
        for kind in args.formats:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, f"model{SUFFIXES[kind]}")
                start = time.process_time()
                try:
                    worst = max(export_network(cfg, model, path, kind), key=lambda c: c.difference / c.largest)
                    result = [f"{worst.difference:.1e}", worst.largest]
                    size = os.path.getsize(path) / 1e6
                except InexactExportError as error:
                    result, size = [str(error), "-"], "-"
                rows.append([name, kind, *result, time.process_time() - start, size])
            print(markdown(HEADER, rows[-1:]).splitlines()[-1], flush=True)
    if args.output:
        with args.output.open("a") as file:
            file.write(f"{machine()}\n\n{markdown(HEADER, rows)}\n")


if __name__ == "__main__":
    main()

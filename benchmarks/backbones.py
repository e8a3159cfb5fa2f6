"""Families of backbones under UPerNet: what images they take, what maps they give, whether they train and export.

python -m benchmarks.backbones [--models convnext_atto ...]
"""

import argparse
import os
import tempfile

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from benchmarks.common import markdown
from d2_contrast.config import load_config
from d2_contrast.engine.export import FORMATS, InexactExportError, export_network
from d2_contrast.modeling.backbone.timm import ImageSizes
from d2_contrast.modeling.weights import innermost_backbone

# A small model of each family.
TIMM = {
    "ResNet": "resnet18",
    "ResNeXt": "resnext50_32x4d",
    "RegNet": "regnety_002",
    "EfficientNet": "efficientnet_b0",
    "MobileNetV3": "mobilenetv3_small_100",
    "ConvNeXt": "convnext_atto",
    "ConvNeXt V2": "convnextv2_atto",
    "HRNet, timm's maps": "hrnet_w18_small",
    "Swin, timm's": "swin_tiny_patch4_window7_224",
    "Swin V2": "swinv2_tiny_window8_256",
    "PVT v2": "pvt_v2_b0",
}
SMP = {"SegFormer (MiT)": "mit_b0"}
VIT = {
    "ViT": "vit_tiny_patch16_224",
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_tiny_patch16_dinov3_qkvb",
}
FAMILIES = [
    (family, name, bottom_up)
    for bottom_up, families in (("TimmBackbone", TIMM), ("SMPBackbone", SMP), ("ViTPyramid", VIT))
    for family, name in families.items()
]
HEADER = ["family", "example", "`MODEL.UPER.BOTTOM_UP`", "sides of images", "channels", "trains", *FORMATS]


def build(name: str, bottom_up: str) -> tuple[CfgNode, nn.Module]:
    """A small UPerNet over a backbone with random weights."""
    torch.manual_seed(0)
    section = "SMP" if bottom_up == "SMPBackbone" else "TIMM"
    options = f"MODEL.DEVICE cpu MODEL.UPER.BOTTOM_UP {bottom_up} MODEL.{section}.NAME {name} INPUT.CROP.ENABLED False"
    options += " MODEL.UPER.OUT_CHANNELS 16 MODEL.SEM_SEG_HEAD.CONVS_DIM 16"
    cfg = load_config("shapes/uper_r18", options.split())
    return cfg, build_model(cfg)


def describe(family: str, name: str, bottom_up: str, model: nn.Module) -> list[str]:
    """What the first columns of the table say."""
    sizes = getattr(innermost_backbone(model)[0], "sizes", ImageSizes(32, 32))
    images = f"only {sizes.largest}" if sizes.largest else f"any, padded to multiples of {sizes.multiple}"
    channels = [str(model.backbone.output_shape()[f"res{i}"].channels) for i in range(2, 6)]
    return [family, f"`{name}`", f"`{bottom_up}`", images, ", ".join(channels)]


def trains(model: nn.Module) -> bool:
    """Whether every parameter below the pyramid gets a finite gradient."""
    side = max(64, model.backbone.size_divisibility)
    image, labels = torch.randint(0, 256, (3, side, side)), torch.randint(0, 12, (side, side))
    sum(model.train()([{"image": image, "sem_seg": labels}] * 2).values()).backward()
    backbone, _ = innermost_backbone(model)
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.requires_grad]
    return all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def exports(cfg: CfgNode, model: nn.Module, kind: str) -> bool:
    """Whether a format gives what PyTorch gives, for images of any size."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_network(cfg, model.eval(), os.path.join(folder, "model"), kind)
        except InexactExportError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[name for _, name, _ in FAMILIES])
    args = parser.parse_args()
    print(markdown(HEADER, []))
    for family, name, bottom_up in FAMILIES:
        if args.models and name not in args.models:
            continue
        cfg, model = build(name, bottom_up)
        row = describe(family, name, bottom_up, model)
        results = [trains(model), *(exports(cfg, model, kind) for kind in FORMATS)]
        row += ["yes" if result else "no" for result in results]
        print(markdown(HEADER, [row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()

"""The models of the configs, shrunk by config keys alone, and samples for them."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import d2_contrast.modeling  # noqa: F401, registers the networks
from d2_contrast.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs"

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.PRETRAINED": False,
    "MODEL.WEIGHTS": "",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.PIXEL_LOSS.CLASS_WEIGHTS": [],
    "MODEL.CONTRAST.EMBEDDING_DIM": 8,
    "MODEL.CONTRAST.MAX_ANCHORS": 200,
    "MODEL.CONTRAST.MIN_PER_GROUP": 1,
    "MODEL.CONTRAST.LOG_PERIOD": 0,
}
RESNET = {"MODEL.TIMM.NAME": "resnet18"}
HRNET = {"MODEL.TIMM.NAME": "hrnet_w18_small"}
SWIN = {
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 2, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 4],
    "MODEL.SWIN.DROP_PATH": 0.0,
}
UPER = {"MODEL.UPER.OUT_CHANNELS": 16, "MODEL.AUX_HEAD.CONVS_DIM": 8}
OCR = {"MODEL.OCR.KEY_CHANNELS": 8, "MODEL.OCR.AUX_CHANNELS": 8}

# One config of every structure, and what makes it small.
STRUCTURES = {
    "cityscapes/hrnet_w48_contrast_bs12_120k.yaml": HRNET,
    "cityscapes/ocrnet_hrnet_w48_contrast_bs12_120k.yaml": HRNET | OCR,
    "cadis/ocrnet_r50_task2_contrast_bs8_50e.yaml": RESNET | OCR,
    "cityscapes/deeplabv3_r101_contrast_bs12_120k.yaml": RESNET | {"MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 8},
    "cityscapes/uper_r101_contrast_bs12_120k.yaml": RESNET | UPER,
    "cityscapes/uper_swin_t_contrast_bs8_160k.yaml": SWIN | UPER,
    "ade20k/uper_swin_t_contrast_bs16_160k.yaml": SWIN | UPER,
    # Detectron2's own parts, unchanged.
    "shapes/fpn_r18_contrast.yaml": {"MODEL.FPN.OUT_CHANNELS": 16},
    "shapes/deeplabv3plus_r18_contrast.yaml": {
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 16,
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [8],
        "INPUT.CROP.ENABLED": False,
    },
}


def small_config(name: str, **overrides) -> CfgNode:
    """Read ``configs/name`` made small; ``overrides`` are keys with "__" for "."."""
    values = SMALL | STRUCTURES[name] | {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(str(CONFIGS / name), [item for pair in values.items() for item in pair])


def small_model(name: str, **overrides) -> nn.Module:
    """Build the model of ``small_config`` from seed 0, in training mode."""
    torch.manual_seed(0)
    return build_model(small_config(name, **overrides))


def make_batch(*sizes: tuple[int, int], num_classes: int = 5, seed: int = 0) -> list[dict]:
    """Random images of these sizes with labels of all classes in blocks of 8 x 8 pixels; some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for height, width in sizes:
        blocks = torch.randint(0, num_classes, (height // 8 + 1, width // 8 + 1), generator=generator)
        labels = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].clone()
        labels[:3] = 255
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": labels})
    return batch

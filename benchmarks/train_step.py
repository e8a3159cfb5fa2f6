"""Seconds per training step with the contrastive losses over the same step without them, through the configs.

    python -m benchmarks.train_step [--models uper_swin_t uper_r18 shapes] [--repeats 5] [KEY VALUE ...]

Batches are random images, and label maps of cells with about ten classes an image. A step is forward pass, backward
pass and SGD update; the ratio is the median over rounds of both in turn. KEY VALUE pairs override the configs.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import d2_contrast.modeling  # noqa: F401  (registers the models)
from benchmarks.common import machine, markdown, time_rounds
from d2_contrast.config import load_config

MODELS = {
    # name: config, overrides, images a batch; four is what the authors trained with on each GPU
    "uper_swin_t": ("configs/ade20k/uper_swin_t_contrast_bs16_160k.yaml", [], 4),
    "uper_r18": ("configs/ade20k/uper_r101_contrast_bs16_160k.yaml", ["MODEL.TIMM.NAME", "resnet18"], 4),
    "shapes": ("configs/shapes/uper_r18_contrast.yaml", [], 8),
}


def make_batch(cfg: CfgNode, images: int) -> list[dict]:
    """Training inputs of the size of the config's crop."""
    generator = torch.Generator().manual_seed(0)
    height, width = cfg.INPUT.CROP.SIZE
    cell = height // 16
    batch = []
    for _ in range(images):
        classes = torch.randint(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (10,), generator=generator)
        cells = classes[torch.randint(10, (16, -(-width // cell)), generator=generator)]
        labels = cells.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": labels, "height": height, "width": width})
    return batch


def step(cfg: CfgNode, images: int) -> Callable[[], None]:
    """A function that trains a model of this config for one step."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    batch = make_batch(cfg, images)

    def run() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    return run


def compare(name: str, repeats: int, overrides: list[str]) -> list[object]:
    """One row: name, batch, seconds without and with the losses, ratio."""
    path, model_options, images = MODELS[name]
    steps = {}
    for enabled in (False, True):
        options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.PRETRAINED", "False"]
        options += ["MODEL.CONTRAST.ENABLED", str(enabled), *model_options, *overrides]
        cfg = load_config(path, options)
        steps[enabled] = step(cfg, images)
    seconds = time_rounds(steps, repeats)
    ratio = statistics.median(b / a for a, b in zip(seconds[False], seconds[True]))
    size = f"{images} x {cfg.INPUT.CROP.SIZE[0]} x {cfg.INPUT.CROP.SIZE[1]}"
    return [name, size, *map(statistics.median, seconds.values()), ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median counts")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configs")
    args = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    rows = [compare(name, args.repeats, args.overrides) for name in args.models]
    print(markdown(["model", "batch", "s without", "s with the losses", "ratio"], rows))


if __name__ == "__main__":
    main()

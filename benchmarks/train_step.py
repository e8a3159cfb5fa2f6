"""Time and memory of a training step with the contrastive losses, and of the same step without them, by the configs.

    python -m benchmarks.train_step [--models uper_swin_t uper_r18 shapes] [--forms dense anchors] [--repeats 5]
        [--no-memory] [KEY VALUE ...]

Batches are random images, and label maps of cells with about ten classes an image. A step is forward pass, backward
pass and SGD update. "dense" projects whole maps, "anchors" the sampled positions alone. The ratio of times is the
median over rounds of all forms in turn. Seconds are those of the processor, so that other load on the machine does not
count; on several threads they add up. Memory is the peak of a process of its own, with its libraries; the process
returns what it frees at once, so that the peak is what a step holds and not what the C library keeps for later.
KEY VALUE pairs override the configs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import d2_contrast.modeling  # noqa: F401  (registers the models)
from benchmarks.common import machine, markdown, peak_in_subprocess, process_peak_mb, time_rounds
from d2_contrast.config import load_config

MODELS = {
    # name: config, overrides, images a batch; four is what the authors trained with on each GPU
    "uper_swin_t": ("configs/ade20k/uper_swin_t_contrast_bs16_160k.yaml", [], 4),
    "uper_r18": ("configs/ade20k/uper_r101_contrast_bs16_160k.yaml", ["MODEL.TIMM.NAME", "resnet18"], 4),
    "shapes": ("configs/shapes/uper_r18_contrast.yaml", [], 8),
}

FORMS = {
    "without": ["MODEL.CONTRAST.ENABLED", "False"],
    "dense": ["MODEL.CONTRAST.ENABLED", "True", "MODEL.CONTRAST.PROJECT", "dense"],
    "anchors": ["MODEL.CONTRAST.ENABLED", "True", "MODEL.CONTRAST.PROJECT", "anchors"],
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


def config(name: str, form: str, overrides: list[str]) -> CfgNode:
    path, model_options, _ = MODELS[name]
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.PRETRAINED", "False"]
    return load_config(path, [*options, *FORMS[form], *model_options, *overrides])


def measure_memory(name: str, form: str, overrides: list[str]) -> float:
    """Peak memory of this fresh process, MB, after two steps: the second meets the first one's momentum."""
    run = step(config(name, form, overrides), MODELS[name][2])
    run()
    run()
    return process_peak_mb()


def compare(name: str, args: argparse.Namespace) -> list[list[object]]:
    """A row for each form: seconds and peak memory, and their ratios to those without the losses."""
    images = MODELS[name][2]
    configs = {form: config(name, form, args.overrides) for form in ("without", *args.forms)}
    seconds = time_rounds({form: step(cfg, images) for form, cfg in configs.items()}, args.repeats, time.process_time)
    height, width = configs["without"].INPUT.CROP.SIZE
    rows: dict[str, list[object]] = {}
    for form in configs:
        ratio = statistics.median(b / a for a, b in zip(seconds["without"], seconds[form]))
        rows[form] = [name, f"{images} x {height} x {width}", form, statistics.median(seconds[form]), ratio]
    if args.memory:
        peaks = {f: peak_in_subprocess("benchmarks.train_step", "--measure", name, f, *args.overrides) for f in configs}
        for form, peak in peaks.items():
            rows[form] += [peak, peak / peaks["without"]]
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    losses = [form for form in FORMS if form != "without"]
    parser.add_argument("--forms", nargs="+", choices=losses, default=losses, help="forms of the losses")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median counts")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave memory out")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configs")
    args = parser.parse_args()
    if args.measure:
        print(measure_memory(*args.measure, args.overrides))
        return
    print(f"{machine()}\n", flush=True)
    header = ["model", "batch", "losses", "s", "ratio", *(["MB", "ratio"] if args.memory else [])]
    for name in args.models:
        print(markdown(header, compare(name, args)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

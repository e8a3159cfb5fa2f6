"""Time and memory of networks beside the same networks of Transformers and of segmentation_models_pytorch.

    pip install transformers segmentation-models-pytorch
    python -m benchmarks.networks [--networks swin_t r101 deeplabv3_r101] [--size 2 256 256] [--repeats 5]
    python -m benchmarks.networks --own r18 hrnet_w48 swin_t
    export TORCHINDUCTOR_COMPILE_THREADS=1 TORCHINDUCTOR_FORCE_DISABLE_CACHES=1
    python -m benchmarks.networks --own r18 hrnet_w48 swin_t --compile

The first form sets ours beside the peers: training step (forward pass, cross entropy, backward pass, SGD update) and
inference, in float32 and in bfloat16, where ours has the memory format that its config sets. The others show what
channels last and torch.compile do to ours; by the variables, compilers run in turn, so that their time is counted, and
find nothing that was compiled before. Random weights and images. All take turns in every round; a ratio is the
median over rounds. Seconds are those of the processor, so that other load on the machine does not count; on several
threads they would add up, hence there is one. Memory is the peak of a process of its own, after two training steps,
where what is freed goes back at once.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

import d2_contrast.modeling  # noqa: F401  (registers the models)
from benchmarks.common import machine, markdown, peak_in_subprocess, process_peak_mb, time_rounds
from d2_contrast.config import load_config
from d2_contrast.modeling.compilation import compile_network

CLASSES = 150
# Our configs; the losses and auxiliary heads are off, since peers lack them or have others.
CONFIGS = {
    "swin_t": ("configs/ade20k/uper_swin_t_bs16_160k.yaml", []),
    "r101": ("configs/ade20k/uper_r101_bs16_160k.yaml", []),
    "r18": ("configs/ade20k/uper_r101_bs16_160k.yaml", ["MODEL.TIMM.NAME", "resnet18"]),
    "deeplabv3_r101": ("configs/ade20k/deeplabv3_r101_bs16_160k.yaml", []),
    "hrnet_w48": ("configs/cityscapes/hrnet_w48_bs12_120k.yaml", []),
    "ocrnet_hrnet_w48": ("configs/ade20k/ocrnet_hrnet_w48_bs16_160k.yaml", []),
    "ocrnet_r50": ("configs/cadis/ocrnet_r50_task2_bs8_50e.yaml", []),
}
COMPARED = ("swin_t", "r101", "deeplabv3_r101")


class Ours(nn.Module):
    """A segmentor of a config, from a normalised batch (N, 3, H, W) to logits (N, K, H, W)."""

    def __init__(self, name: str, *overrides):
        super().__init__()
        self.network = build_model(config(name, *overrides))
        self.channels_last = self.network.channels_last

    def forward(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.network.sem_seg_head.layers(self.network.backbone(images))
        logits = logits[0] if isinstance(logits, tuple) else logits  # the first prediction of OCRNet, in training
        return upsample(logits, images)


def config(name: str, *overrides) -> CfgNode:
    path, options = CONFIGS[name]
    off = ["MODEL.BACKBONE.PRETRAINED", "False", "MODEL.AUX_HEAD.NAME", "", "MODEL.PIXEL_LOSS.CLASS_WEIGHTS", []]
    off += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES]
    norms = [x for part in ("BACKBONE", "UPER", "SEM_SEG_HEAD") for x in (f"MODEL.{part}.NORM", "BN")]
    return load_config(path, ["MODEL.DEVICE", "cpu", *off, *norms, *options, *overrides])


def upsample(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits.float(), images.shape[-2:], mode="bilinear", align_corners=False)


class Transformers(nn.Module):
    """UPerNet of Transformers, without auxiliary head."""

    def __init__(self, name: str):
        super().__init__()
        hub = import_peer("transformers", "transformers")
        stages = ["stage1", "stage2", "stage3", "stage4"]
        if name == "swin_t":
            backbone = hub.SwinConfig(image_size=512, drop_path_rate=0.3, out_features=stages)
        else:
            backbone = hub.ResNetConfig(depths=[3, 4, 23, 3], out_features=stages)
        settings = hub.UperNetConfig(
            backbone_config=backbone, hidden_size=512, num_labels=CLASSES, use_auxiliary_head=False
        )
        self.network = hub.UperNetForSemanticSegmentation(settings)

    def forward(self, images: Tensor) -> Tensor:
        return upsample(self.network(images).logits, images)


class Smp(nn.Module):
    """The network of segmentation_models_pytorch."""

    def __init__(self, name: str):
        super().__init__()
        smp = import_peer("segmentation_models_pytorch", "segmentation-models-pytorch")
        options = {"encoder_weights": None, "classes": CLASSES}
        if name == "swin_t":
            encoder = "tu-swin_tiny_patch4_window7_224"
            self.network = smp.UPerNet(encoder, decoder_channels=512, img_size=None, strict_img_size=False, **options)
        elif name == "r101":
            self.network = smp.UPerNet("resnet101", decoder_channels=512, **options)
        else:
            self.network = smp.DeepLabV3("resnet101", encoder_output_stride=8, **options)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).float()


def import_peer(module: str, package: str):
    """Import a peer where it is used."""
    try:
        return __import__(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: this benchmark needs `pip install {package}`") from None


def build(name: str, form: str, size: tuple[int, ...]) -> tuple[nn.Module, torch.dtype | None]:
    """A network in one of the forms of a table, and the dtype of its mixed precision."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "bfloat16" in form else None
    if form.startswith("Transformers"):
        return Transformers(name), dtype
    if form.startswith("SMP"):
        return Smp(name), dtype
    if form.startswith("d2_contrast"):
        return Ours(name), dtype
    model = Ours(name, "MODEL.CHANNELS_LAST", "channels last" in form)
    if "compiled" in form:
        compile_network(model.network)
        model.network.sem_seg_head.layers = torch.compile(model.network.sem_seg_head.layers)  # which is what is called
    return model, dtype


def training_step(model: nn.Module, dtype: torch.dtype | None, size: tuple[int, ...]) -> Callable[[], None]:
    images, targets = torch.randn(size[0], 3, *size[1:]), torch.randint(CLASSES, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        model.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            logits = model(images)
        F.cross_entropy(logits, targets).backward()
        optimizer.step()

    return run


def inference(model: nn.Module, dtype: torch.dtype | None, size: tuple[int, ...]) -> Callable[[], None]:
    images = torch.randn(size[0], 3, *size[1:])

    @torch.no_grad()
    def run() -> None:
        model.eval()
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            model(images)

    return run


def first_call(function: Callable[[], None]) -> float:
    """Seconds of the processor that the first call of a function takes, with those of C++ compilers that it runs."""
    start = sum(os.times()[:4])
    function()
    return sum(os.times()[:4]) - start


def compare(name: str, forms: list[str], args: argparse.Namespace) -> list[list[object]]:
    """A row for each form; ratios are to the first."""
    size = tuple(args.size)
    models = {form: build(name, form, size) for form in forms}
    rows: dict[str, list[object]] = {}
    for form, (model, _) in models.items():
        rows[form] = [name, form, sum(p.numel() for p in model.parameters()) / 1e6]
    for kind in (training_step, inference):
        functions = {form: kind(*models[form], size) for form in forms}
        first = {form: first_call(function) for form, function in functions.items()}
        seconds = time_rounds(functions, args.repeats, time.process_time)
        for form in forms:
            ratio = statistics.median(b / a for a, b in zip(seconds[forms[0]], seconds[form]))
            rows[form] += [statistics.median(seconds[form]), ratio]
            if args.compile:
                rows[form].append(first[form])
    if args.memory:
        del models
        for form in forms:
            rows[form].append(peak_in_subprocess("benchmarks.networks", "--measure", name, form, "--size", *size))
    return list(rows.values())


def measure_memory(name: str, form: str, size: tuple[int, ...]) -> float:
    run = training_step(*build(name, form, size), size)
    run()
    run()
    return process_peak_mb()


def peers_of(name: str) -> list[str]:
    return ["SMP"] if name.startswith("deeplab") else ["Transformers", "SMP"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=COMPARED, default=list(COMPARED), help="beside the peers")
    parser.add_argument("--own", nargs="+", choices=list(CONFIGS), help="ours alone, in several forms")
    parser.add_argument("--compile", action="store_true", help="with --own: compiled forms, and their first calls")
    parser.add_argument("--size", nargs=3, type=int, default=[2, 256, 256], help="images, height, width")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median counts")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave memory out")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        print(measure_memory(*args.measure, tuple(args.size)))
        return
    print(f"{machine()}\n\n{' x '.join(map(str, args.size))}, {CLASSES} classes\n", flush=True)
    first = ["first call"] if args.compile else []
    header = ["network", "form", "M parameters", "s training", "ratio", *first, "s inference", "ratio", *first]
    print("\n".join(markdown(header + (["MB"] if args.memory else []), []).splitlines()), flush=True)
    for name in args.own or args.networks:
        for dtype in args.dtypes:
            if args.own and args.compile:
                forms = [dtype, f"{dtype}, compiled"]
            elif args.own:
                forms = [dtype, f"{dtype}, channels last"]
            else:
                forms = [f"{who}, {dtype}" for who in ("d2_contrast", *peers_of(name))]
            print("\n".join(markdown(header, compare(name, forms, args)).splitlines()[2:]), flush=True)


if __name__ == "__main__":
    main()

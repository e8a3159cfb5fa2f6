"""What a training of the paper's networks needs on GPUs, computed from their graphs: memory, operations, hours.

    python -m benchmarks.full_scale [--configs ade20k/uper_swin_t_contrast_bs16_160k ...] [--gpus 4]

Nothing is trained: the networks run on fake tensors, which have shapes but no values. Memory is what a step holds when
its backward pass begins: weights, what the optimizer keeps, and all tensors that autograd has saved, projectors of the
contrastive losses included. Workspace of kernels, the anchors (under 0.1 GB), the allocator and CUDA come on top.
Operations are multiply-adds of forward and backward pass, of which the latter takes twice the former. Hours assume a
share of the GPU's peak that published trainings reach, see UTILISATION.
"""

import argparse
import re
from contextlib import nullcontext

import torch
from detectron2.config import CfgNode
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

import d2_contrast.modeling  # noqa: F401  (registers the models)
from benchmarks.common import markdown
from d2_contrast.config import load_config
from d2_contrast.config_files import CONFIGS
from d2_contrast.modeling import cost
from d2_contrast.modeling.features import join_features

FOLDERS = ("cityscapes", "ade20k", "pascal_context", "cadis")
# Peak of matrix products in bfloat16 without sparsity, multiply-adds a second: half of the FLOP/s of the data sheets.
PEAKS = {"A100": 156e12, "H100": 495e12}
# Share of that peak that a training reaches: that of the best published one of these networks on an A100, UPerNet with
# ResNet-101 on ADE20K in 0.489 s a step. Others reach 0.01 to 0.03.
UTILISATION = 0.04
# What a GPU of 24 GB leaves to a step.
ONE_GPU_GB = 21.0


class Step(torch.nn.Module):
    """A segmentor in training, up to its losses per pixel and to the anchors, which depend on values."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        features = self.model.backbone(images)
        self.model.sem_seg_head(features, labels)
        if self.model.aux_head is not None:
            self.model.aux_head(features, labels)
        features = join_features(features, self.model.contrast.projectors)
        for name, projector in self.model.contrast.projectors.items():
            projector.hidden(features[name])


def saved_bytes(cfg: CfgNode, model: torch.nn.Module, images: int, bfloat16: bool) -> tuple[int, int]:
    """Bytes that autograd saves in a training step, and bytes of weights and of what the optimizer keeps."""
    network = Step(model).train()
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    kept = sum(x.numel() * x.element_size() for x in tensors.values())
    trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    kept += trained * (2 if cfg.SOLVER.OPTIMIZER == "AdamW" else 1)
    height, width = cost.input_image(cfg, model).shape[2:]

    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(x) for name, x in tensors.items()}
        own = {x.untyped_storage()._cdata for x in fake.values()}
        saved: dict[int, torch.Tensor] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if (storage := tensor.untyped_storage()._cdata) not in own:
                saved[storage] = tensor
            return tensor

        labels = torch.zeros(images, height, width, dtype=torch.int64)
        images_and_labels = torch.zeros(images, 3, height, width), labels
        precision = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
        with precision, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            torch.func.functional_call(network, fake, images_and_labels)
        return sum(x.untyped_storage().nbytes() for x in saved.values()), kept


def row(name: str, gpus: int) -> list[object]:
    """A line of the table."""
    cfg = load_config(name)
    images = cfg.SOLVER.IMS_PER_BATCH // gpus
    model = cost.build(cfg, contrast=True)
    gigabytes = {}
    for bfloat16 in (False, True):
        saved, kept = saved_bytes(cfg, model, images, bfloat16)
        gigabytes[bfloat16] = (saved + kept) / 1e9
        fitting = int((ONE_GPU_GB * 1e9 - kept) // (saved / images))
    image = cost.input_image(cfg, model)
    operations = 3 * images * cost.count(cost.Training(model), image)[""][1]
    hours = [operations * cfg.SOLVER.MAX_ITER / (peak * UTILISATION) / 3600 for peak in PEAKS.values()]
    crop = f"{images} x {cfg.INPUT.CROP.SIZE[0]} x {cfg.INPUT.CROP.SIZE[1]}"
    return [
        f"`{name}`",
        crop,
        gigabytes[False],
        gigabytes[True],
        operations / 1e12,
        *hours,
        min(fitting, cfg.SOLVER.IMS_PER_BATCH),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", help="names of configs; default: those with all losses of the paper")
    parser.add_argument("--gpus", type=int, default=4, help="GPUs that share a batch")
    args = parser.parse_args()
    names = args.configs or [
        f"{folder}/{path.stem}"
        for folder in FOLDERS
        for path in sorted((CONFIGS / folder).glob("*_contrast_bs*.yaml"))
        if not re.search("trainval|lovasz", path.stem)  # cost the same, but for a sort
    ]
    headers = ["config", "images of a GPU", "GB float32", "GB bfloat16", "multiply-adds of a step (10^12)"]
    headers += [f"h on {args.gpus} {gpu}" for gpu in PEAKS] + ["images in 24 GB"]
    print(markdown(headers, [row(name, args.gpus) for name in tqdm(names, disable=None)]))


if __name__ == "__main__":
    main()

"""Feature maps by name."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList
from torch import Tensor, nn

from d2_contrast.contrast.device import to_device

from .layers import concat_at_finest


def select_features(shapes: Mapping[str, ShapeSpec], names: Iterable[str], key: str) -> dict[str, ShapeSpec]:
    """Return the entries ``names`` of a backbone's ``output_shape()``, in the order of ``names``.

    Args:
        shapes: output shapes of the backbone.
        names: the feature maps wanted.
        key: the config key that asks for them, for the error message.

    Raises:
        ValueError: a name is unknown; the message lists those that the backbone gives.
    """
    names = list(names)
    unknown = [name for name in names if name not in shapes]
    if unknown or not names:
        raise ValueError(f"{key} is {names}: the backbone gives {list(shapes)}, not {unknown or 'an empty list'}")
    return {name: shapes[name] for name in names}


def join_shapes(shapes: Mapping[str, ShapeSpec], names: Iterable[str], key: str) -> dict[str, ShapeSpec]:
    """As :func:`select_features`; a name "a+b" stands for two maps that :func:`join_features` concatenates."""
    joined = {}
    for name in list(names) or [""]:
        parts = select_features(shapes, name.split("+") if name else [], key).values()
        joined[name] = ShapeSpec(channels=sum(part.channels for part in parts), stride=next(iter(parts)).stride)
    return joined


def part_names(names: Iterable[str]) -> list[str]:
    """The names of the maps of a backbone that these stand for, each once; "a+b" stands for two."""
    return list(dict.fromkeys(part for name in names for part in name.split("+")))


def join_features(features: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The maps, and besides "a+b" for each such name: these two, concatenated at the size of the first."""
    joined = {name: concat_at_finest([features[part] for part in name.split("+")]) for name in names if "+" in name}
    return {**features, **joined}


def group_by_stride(shapes: Mapping[str, ShapeSpec]) -> list[list[str]]:
    """Names of maps in their order; neighbours of equal stride are together."""
    return [list(names) for _, names in groupby(shapes, key=lambda name: shapes[name].stride)]


def maps_by_stride(features: Mapping[str, Tensor], groups: Iterable[Sequence[str]]) -> list[Tensor]:
    """A map for each group of names: theirs, concatenated."""
    return [concat_at_finest([features[name] for name in names]) for names in groups]


def contrasted_features(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> list[str]:
    """Names of the feature maps that are contrasted, or would be if the losses were enabled.

    A config without the losses rarely sets MODEL.CONTRAST.IN_FEATURES. If that list lacks a map that the head reads, as
    the default does for a pyramid, the maps of the head are taken. If the backbone has none of these maps, all of its
    maps are.

    Args:
        cfg: config of the network.
        shapes: output shapes of its backbone.
    """
    names, read = (
        [name for name in section.IN_FEATURES if set(part_names([name])) <= set(shapes)]
        for section in (cfg.MODEL.CONTRAST, cfg.MODEL.SEM_SEG_HEAD)
    )
    if not cfg.MODEL.CONTRAST.ENABLED and not set(read) <= set(part_names(names)):
        names = read
    return names or list(shapes)


def pad_batch(model: nn.Module, tensors: list[Tensor], value: float) -> ImageList:
    """Pad images (C, H, W) or labels (H, W) at the bottom and right to one size that the model's backbone takes.

    In training that is also one that its strides divide, as losses compare resized logits with labels.
    """
    backbone = model.backbone
    divisor = backbone.size_divisibility
    if not divisor and model.training:
        divisor = max(shape.stride for shape in backbone.output_shape().values())
    return ImageList.from_tensors(tensors, divisor, value, backbone.padding_constraints)


def narrow(labels: Tensor) -> Tensor:
    """Labels in host memory as uint8 if their values allow it: an eighth of the bytes to copy."""
    low, high = (int(x) for x in labels.aminmax())
    return labels.to(torch.uint8) if low >= 0 and high <= torch.iinfo(torch.uint8).max else labels


def normalise_images(model: nn.Module, batched_inputs: list[dict]) -> ImageList:
    """Normalise and pad the images of a batch as Detectron2's meta-architectures do, in the model's memory format."""
    images = [(to_device(x["image"], model.device) - model.pixel_mean) / model.pixel_std for x in batched_inputs]
    batch = pad_batch(model, images, 0.0)
    if getattr(model, "channels_last", False):
        batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
    return batch


@torch.no_grad()
def extract_features(model: nn.Module, batched_inputs: list[dict]) -> dict[str, Tensor]:
    """Run the backbone of one of Detectron2's meta-architectures alone: a batch to {name: (N, C, h, w)}."""
    return model.backbone(normalise_images(model, batched_inputs).tensor)

"""Weights of backbones from elsewhere: recognised by their content, renamed, checked.

- Swin Transformers in their authors' naming, for classification or segmentation, or in timm's;
- ResNets in the naming of torchvision, timm or Detectron2;
- HRNets in their authors' naming, which is also timm's;
- any other timm model, for a TimmBackbone of the same name;
- any encoder of segmentation_models_pytorch, for an SMPBackbone of the same name.

Every load logs a summary of what was matched. Too few matches are an error, as are weights of another depth or stem:
a backbone that silently starts from random weights costs days.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import timm
import torch
from detectron2.modeling import SimpleFeaturePyramid
from timm.layers import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn

# A file that matches a smaller share of a backbone's numbers does not hold its weights. (By the number of tensors,
# norms of equal width would let a ResNet-50 pass for a ResNet-34.)
MIN_MATCHED = 0.9

# Prefixes of a backbone inside a larger model; timm may join one to the next name by "_".
WRAPPERS = re.compile(r"^((module|model|backbone|bottom_up|net|body|encoder)[._])+")
# Buffers that follow from the structure, or only count.
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask")
# From Detectron2's names for the layers of a ResNet to torchvision's.
RESNET_NAMES = (
    (re.compile(r"^stem[._]conv1\.norm\."), "bn1."),
    (re.compile(r"^stem[._]conv1\."), "conv1."),
    (re.compile(r"^res([2-5])\."), lambda match: f"layer{int(match[1]) - 1}."),
    (re.compile(r"\.shortcut\.norm\."), ".downsample.1."),
    (re.compile(r"\.shortcut\."), ".downsample.0."),
    (re.compile(r"\.conv(\d)\.norm\."), r".bn\1."),
)
TABLE = "relative_position_bias_table"

logger = logging.getLogger(__name__)


def load_pretrained(backbone: nn.Module, name: str, **options) -> None:
    """Download the weights of the timm model ``name`` ("name.tag" chooses among several) into ``backbone``.

    Args:
        backbone: a backbone without pyramid.
        name: of the model.
        options: more arguments for timm, which fits the weights to them.

    Raises:
        RuntimeError: they cannot be downloaded.
        ValueError: they are not the weights of such a backbone.
    """
    load_download(
        backbone,
        lambda: timm.create_model(name, pretrained=True, **options),
        f"timm's {name!r}",
        "https://huggingface.co/timm",
    )


def load_download(backbone: nn.Module, create: Callable[[], nn.Module], source: str, site: str) -> None:
    """Load the weights of a network that a library downloads into ``backbone``.

    Args:
        backbone: a backbone without pyramid.
        create: makes the network with its weights.
        source: whose network it is, for messages.
        site: where its file is to be found.

    Raises:
        RuntimeError: they cannot be downloaded.
        ValueError: they are not the weights of such a backbone.
    """
    try:
        weights = create().state_dict()
    except Exception as error:
        raise RuntimeError(
            f"MODEL.BACKBONE.PRETRAINED is True, but the weights of {source} cannot be downloaded "
            f"({type(error).__name__}: {error}). Fetch them elsewhere ({site}) and name the file "
            "by MODEL.WEIGHTS, or start from random weights with MODEL.BACKBONE.PRETRAINED False"
        ) from error
    load_backbone(backbone, weights, source)


def load_backbone(backbone: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load ``weights``, in any naming that this module knows, into ``backbone`` and log a summary.

    Tables of relative positions are resized where the attention windows differ. Modules that the backbone lacks, such
    as a classifier, are left out.

    Args:
        backbone: a backbone without pyramid.
        weights: tensors by name.
        source: where they come from, for messages.

    Returns:
        Names of the backbone's tensors that stay as they were.

    Raises:
        ValueError: they match too little of the backbone, a convolution or linear layer of it is not among them or has
            another shape there, or a module of it has more tensors there.
    """
    own = backbone.state_dict()
    names, foreign = canonical_names(own), canonical_names(weights)
    matched, resized, misshapen = {}, [], []
    for canonical, name in names.items():
        if canonical not in foreign:
            continue
        tensor = weights[foreign[canonical]]
        if canonical.endswith(TABLE) and tensor.shape[1:] == own[name].shape[1:] and len(tensor) != len(own[name]):
            side = (int(len(own[name]) ** 0.5) + 1) // 2
            tensor = resize_rel_pos_bias_table_simple(tensor, (side, side), own[name].shape)
            resized.append(name)
        if canonical.endswith("patch_embed_proj_weight") and tensor.shape[:2] == own[name].shape[:2]:
            tensor = resample_patch_embed(tensor, list(own[name].shape[2:]))
        if canonical.endswith("pos_embed") and tensor.ndim == own[name].ndim == 3:
            tensor = _resize_positions(tensor, own[name].shape[1])
        if tensor.shape == own[name].shape and not is_integer(tensor):
            matched[name] = tensor
        else:
            misshapen.append(name)
    missing = [name for canonical, name in names.items() if canonical not in foreign]
    unused = [name for canonical, name in foreign.items() if canonical not in names]
    summary = (
        f"{source}: {describe(weights)}; {len(matched)} of the backbone's {len(names)} tensors loaded; "
        f"missing: {summarise_names(missing)}; unused: {summarise_names(unused)}; "
        f"of another shape: {summarise_names(misshapen)}"
    )
    if resized:
        summary += f"; {len(resized)} tables of relative positions resized to another window"
    lost = [name for name in (*missing, *misshapen) if name.endswith("weight") and own[name].ndim > 1]
    surplus = _inside_modules(unused, names.values())
    share = sum(own[name].numel() for name in matched) / sum(own[name].numel() for name in names.values())
    if share < MIN_MATCHED or lost or surplus:
        raise ValueError(
            f"These are not the weights of this backbone ({describe(own)}). {summary}; convolutions and linear layers "
            f"without weights: {summarise_names(lost)}; more than its modules have: {summarise_names(surplus)}"
        )
    backbone.load_state_dict(matched, strict=False)
    logger.info(summary)
    return missing + misshapen


def _inside_modules(names: Iterable[str], own: Iterable[str]) -> list[str]:
    """Those of ``names`` that lie in one of the outermost modules of the tensors ``own``."""
    modules = {re.escape(_shorten(name).partition(".")[0]).replace("_", "[._]") for name in own}
    pattern = re.compile(rf"({'|'.join(modules)})(_\d+)?\.")
    return [name for name in names if pattern.match(_shorten(name))]


def _resize_positions(embedding: Tensor, count: int) -> Tensor:
    """Resize the position embedding (1, tokens, C) of a Vision Transformer to a number of tokens.

    Both are a square of tokens after some that have no place in the image, equally many.
    """
    side, new_side = math.isqrt(embedding.shape[1]), math.isqrt(count)
    prefix = embedding.shape[1] - side**2
    if embedding.shape[1] == count or prefix != count - new_side**2:
        return embedding
    return resample_abs_pos_embed(embedding, [new_side, new_side], [side, side], num_prefix_tokens=prefix)


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor, or NumPy array, holds no floats."""
    return not torch.as_tensor(tensor).is_floating_point()


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name, without the parts that differ between implementations, to itself; skip derived buffers.

    Dots become "_": in many of its feature extractors timm joins the names of the two outermost modules by it, as in
    stem_conv, layers_0 and features_denseblock1.
    """
    canonical = {_shorten(name).replace(".", "_"): name for name in names if not name.endswith(DERIVED)}
    # Swin Transformers merge patches at the end of a stage, timm's at the beginning of the next.
    if any(name.endswith(TABLE) for name in canonical) and not any(
        name.startswith("layers_0_downsample_") for name in canonical
    ):
        pattern = re.compile(r"^layers_([1-9])_downsample_")
        canonical = {
            pattern.sub(lambda match: f"layers_{int(match[1]) - 1}_downsample_", short): name
            for short, name in canonical.items()
        }
    return canonical


def _shorten(name: str) -> str:
    """A name without prefixes, in torchvision's naming if it is of a ResNet."""
    short = WRAPPERS.sub("", name)
    for pattern, replacement in RESNET_NAMES:
        short = pattern.sub(replacement, short)
    return short


def describe(names: Iterable[str]) -> str:
    """Describe the network that tensors with these names belong to."""
    short = canonical_names(names)
    if any(name.endswith(TABLE) for name in short):
        return "a Swin Transformer"
    if any(name.startswith("stage4_") for name in short):
        return "an HRNet"
    if any(name.startswith("layer4_") for name in short):
        return "a ResNet"
    return f"an unknown network ({summarise_names(short.values())})"


def innermost_backbone(model: nn.Module) -> tuple[nn.Module | None, str]:
    """The backbone of a model below its pyramids, None if it has none, and the prefix of its tensors' names."""
    backbone, prefix = getattr(model, "backbone", None), "backbone."
    while hasattr(backbone, "bottom_up") or isinstance(backbone, SimpleFeaturePyramid):
        below = "net" if isinstance(backbone, SimpleFeaturePyramid) else "bottom_up"
        backbone, prefix = getattr(backbone, below), f"{prefix}{below}."
    return backbone, prefix


def summarise_names(names: Iterable[str]) -> str:
    """Up to four names, or how many there are in each module."""
    names = sorted(names)
    if len(names) > 4:
        counts = Counter(WRAPPERS.sub("", name).partition(".")[0] for name in names)
        return ", ".join(f"{module} ({count})" for module, count in counts.items())
    return ", ".join(names) or "none"

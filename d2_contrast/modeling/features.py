"""Feature maps by name."""

from collections.abc import Iterable, Mapping

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec


def select_features(shapes: Mapping[str, ShapeSpec], names: Iterable[str], key: str) -> dict[str, ShapeSpec]:
    """Return the entries ``names`` of a backbone's ``output_shape()``, in the order of ``names``.

    Args:
        shapes: what the backbone gives.
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


def contrasted_features(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> list[str]:
    """Names of the feature maps that the contrastive losses act on, or would act on in a network trained without.

    A config without the losses seldom names their maps: where those of MODEL.CONTRAST.IN_FEATURES leave out what the
    head reads, as the default does under a pyramid, the head's are meant. All maps, where the backbone gives none of
    either.

    Args:
        cfg: of the network.
        shapes: what its backbone gives.
    """
    names, read = (
        [name for name in section.IN_FEATURES if name in shapes]
        for section in (cfg.MODEL.CONTRAST, cfg.MODEL.SEM_SEG_HEAD)
    )
    if not cfg.MODEL.CONTRAST.ENABLED and not set(read) <= set(names):
        names = read
    return names or list(shapes)

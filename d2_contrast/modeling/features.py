"""Feature maps by name."""

from collections.abc import Iterable, Mapping

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

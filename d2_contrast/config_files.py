"""Finding and reading config files."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml
from detectron2.utils.file_io import PathManager

# This project's own: inside the package where a wheel was installed, beside it in a clone.
_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with a repeated key, of which yaml itself would silently take the last value."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and first.setdefault(key.value, key) is not key:
                line = first[key.value].start_mark.line + 1
                problem = f"the key {key.value!r} is there twice, first in line {line}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return node


def load_yaml(stream: str | IO) -> Any:
    """Read yaml that holds data alone.

    Raises:
        yaml.YAMLError: it is not yaml, holds tags that could run code, or a mapping has a key twice.
    """
    return yaml.load(stream, _Loader)


def find_config(name: str, folder: str = "") -> str:
    """Return the path of a config file.

    Args:
        name: a path, or the name of a config of this project, such as "shapes/uper_r18_contrast"; ".yaml" and a
            leading "configs/" make no difference to a name. A path that exists wins.
        folder: where relative paths start; "" for the working directory.

    Raises:
        FileNotFoundError: there is neither; the message tells similar names.
    """
    path = name if "://" in name else os.path.join(folder, os.path.expanduser(name))
    if PathManager.isfile(path):
        return path
    name = name.removeprefix("configs/").removesuffix(".yaml")
    own = CONFIGS / f"{name}.yaml"
    if own.is_file():
        return str(own)
    names = [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in sorted(CONFIGS.rglob("*.yaml"))]
    similar = difflib.get_close_matches(name, names)
    hint = f"similar names: {', '.join(similar)}" if similar else f"they are in {CONFIGS}"
    raise FileNotFoundError(f"{path}: no such config file, and no config of d2_contrast has this name; {hint}")


def read_config(path: str, _readers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a config file over its ``_BASE_``, one or several names or paths from its folder, see :func:`find_config`.

    Raises:
        FileNotFoundError: a base does not exist.
        ValueError: a file is not yaml, holds tags that could run code, is no mapping, or is a base of itself.
    """
    if path in _readers:
        raise ValueError(f"{path}: this config is a base of itself, by way of {' and '.join(_readers)}")
    try:
        with PathManager.open(path) as file:
            values = load_yaml(file) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:  # the last by what is nested too deeply
        raise ValueError(f"{path}: cannot read this file as yaml: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys with values, such as SEED: 1, but this holds {values!r:.60}")
    if odd := _odd_keys(values):
        raise ValueError(f"{path}: the key {odd[0]!r} is no text: expected the name of a key, in quotes if need be")
    bases = values.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: _BASE_ is {bases!r:.60}: expected the name of a config, or a list of names")
    merged: dict[str, Any] = {}
    for base in bases:
        try:
            found = find_config(base, os.path.dirname(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: _BASE_: {error}") from None
        _merge(read_config(found, (*_readers, path)), into=merged)
    _merge(values, into=merged)
    return merged


def flatten(cfg: Mapping, prefix: str = "") -> dict[str, object]:
    """The values of a config, or of what a config file holds, by dotted key; an empty mapping is a value."""
    flat: dict[str, object] = {}
    for key, value in cfg.items():
        is_section = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _odd_keys(values: dict) -> list:
    """Keys of a mapping and of those in it that are not text; yaml gives numbers, and True for "on"."""
    odd, seen, waiting = [], set(), [values]
    while waiting:
        mapping = waiting.pop()
        if id(mapping) not in seen:  # an anchor may nest a mapping in itself
            seen.add(id(mapping))
            odd += [key for key in mapping if not isinstance(key, str)]
            waiting += [value for value in mapping.values() if isinstance(value, dict)]
    return odd


def _merge(values: dict[str, Any], into: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(value, into[key])
        else:
            into[key] = value

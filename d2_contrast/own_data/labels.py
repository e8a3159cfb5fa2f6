"""Content of label maps: ids in one channel, or colours."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.files import read_raw_label
from ..data.labels import count_values

Color = tuple[int, int, int]
MAX_VALUES = 255  # more values mean instances or a picture, not classes


@dataclass(frozen=True)
class LabelScan:
    """What is in label maps.

    Attributes:
        values: ids, or colours if ``is_color``, with how many pixels they have in all, in ascending order.
        images: in how many label maps each of them is.
        is_color: whether they are colours: red, green and blue from 0 to 255.
        palette: colours that files with a palette give to ids; {} if they have none, or one of greys.
        sizes: height and width of each label map that could be read.
        unreadable: why a file could not be read, a sentence by its path.
    """

    values: Mapping[int, int] | Mapping[Color, int]
    images: Mapping[int, int] | Mapping[Color, int]
    is_color: bool
    palette: Mapping[int, Color]
    sizes: Mapping[Path, tuple[int, int]]
    unreadable: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Content:
    values: dict
    is_color: bool
    palette: dict[int, Color]
    size: tuple[int, int]


def scan_labels(paths: Sequence[Path]) -> LabelScan:
    """Read label maps, with a progress bar on a terminal.

    Raises:
        ValueError: none can be read, or a file has more values than classes can be.
    """
    contents: dict[Path, _Content] = {}
    unreadable: dict[Path, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_read, paths)
        for path, content in zip(paths, tqdm(found, total=len(paths), unit="label map", disable=None, leave=False)):
            if isinstance(content, str):
                unreadable[path] = content
            else:
                contents[path] = content
    if not contents:
        raise ValueError(f"none of the {len(paths)} label maps can be used; the first: {unreadable[paths[0]]}")
    is_color = any(content.is_color for content in contents.values())
    if is_color:  # among them may be some that are black and white, or have a palette
        contents = {path: c if c.is_color else _as_colors(path, c) for path, c in contents.items()}
    values: Counter = Counter()
    images: Counter = Counter()
    for path, content in contents.items():
        if len(content.values) > MAX_VALUES + 1:
            raise ValueError(
                f"{path} has {len(content.values)} different {'colours' if is_color else 'values'}: expected a label "
                "map with one for each class; more are left by smoothing, by JPEG, or stand for instances"
            )
        values.update(content.values)
        images.update(dict.fromkeys(content.values, 1))
    palette = {value: color for content in contents.values() for value, color in content.palette.items()}
    if all(len(set(palette[value])) == 1 for value in values if value in palette):
        palette = {}
    sizes = {path: content.size for path, content in contents.items()}
    return LabelScan(dict(sorted(values.items())), dict(images), is_color, palette, sizes, unreadable)


def read_colors(path: Path) -> np.ndarray:
    """A label map as colours, (H, W) with 65536 red + 256 green + blue."""
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB")).astype(np.int32)
    return (array[..., 0] << 16) | (array[..., 1] << 8) | array[..., 2]


def color_of(packed: int) -> Color:
    """The colour that a number of :func:`read_colors` stands for."""
    return packed >> 16, packed >> 8 & 255, packed & 255


def _read(path: Path) -> _Content | str:
    """What is in a file, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            has_channels = image.mode in ("RGB", "RGBA") and image.format not in ("JPEG", "MPO")
            palette = _palette(image) if image.mode == "P" else {}
        if has_channels:
            packed = read_colors(path)
            colors = {color_of(value): count for value, count in count_values(packed).items()}
            if any(len(set(color)) > 1 for color in colors):
                return _Content(colors, True, {}, packed.shape)
        raw = read_raw_label(str(path))
    except Exception as error:  # Pillow's parsers let anything through
        message = str(error)
        return message if str(path) in message else f"{path}: cannot read this label map: {message}"
    return _Content(count_values(raw), False, palette, raw.shape)


def _as_colors(path: Path, content: _Content) -> _Content:
    colors = {color_of(value): count for value, count in count_values(read_colors(path)).items()}
    return _Content(colors, True, {}, content.size)


def _palette(image: Image.Image) -> dict[int, Color]:
    flat = image.getpalette("RGB") or []
    return {i: (flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) for i in range(len(flat) // 3)}

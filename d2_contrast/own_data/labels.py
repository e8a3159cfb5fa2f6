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

from ..data.checks import describe_palettes
from ..data.files import BLACK_AND_WHITE, Color, color_of, pack_colors, read_label_colors, read_palette, read_raw_label
from ..data.labels import count_values
from ..data.metadata import MAX_ID, is_id

MAX_VALUES = 255  # more values mean instances or a picture, not classes


@dataclass(frozen=True)
class LabelScan:
    """What is in label maps.

    Attributes:
        values: ids, or colours if ``is_color``, with how many pixels they have in all, in ascending order.
        images: in how many label maps each of them is.
        is_color: whether they are colours: red, green and blue from 0 to 255.
        palette: colours that files with a palette, or of 1 bit, give to ids; {} if there are none.
        sizes: height and width of each label map that could be read.
        unreadable: why a file could not be read, a sentence by its path.
        notes: what was decided that may be wrong, a sentence each.
    """

    values: Mapping[int, int] | Mapping[Color, int]
    images: Mapping[int, int] | Mapping[Color, int]
    is_color: bool
    palette: Mapping[int, Color]
    sizes: Mapping[Path, tuple[int, int]]
    unreadable: Mapping[Path, str] = field(default_factory=dict)
    notes: Sequence[str] = field(default=())


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
    difference = _find_difference(contents)
    is_color = any(content.is_color for content in contents.values()) or bool(difference)
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
    sizes = {path: content.size for path, content in contents.items()}
    return LabelScan(dict(sorted(values.items())), dict(images), is_color, palette, sizes, unreadable, difference)


def read_colors(path: Path) -> np.ndarray:
    """A label map as colours, (H, W) numbers of :func:`pack_colors`."""
    return pack_colors(read_label_colors(str(path)))


def is_colorful(palette: Mapping[int, Color]) -> bool:
    """Whether a palette holds other colours than greys."""
    return any(len(set(color)) > 1 for color in palette.values())


def _read(path: Path) -> _Content | str:
    """What is in a file, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            mode = image.mode
        palette = read_palette(str(path))
        if mode in ("RGB", "RGBA"):
            packed = read_colors(path)
            colors = {color_of(value): count for value, count in count_values(packed).items()}
            if any(len(set(color)) > 1 for color in colors):
                return _Content(colors, True, {}, packed.shape)
        raw = read_raw_label(str(path))
    except Exception as error:  # Pillow's parsers let anything through
        message = str(error)
        return message if str(path) in message else f"{path}: cannot read this label map: {message}"
    values = count_values(raw)
    if wrong := [value for value in values if not is_id(value)]:
        return f"{path} has the value {wrong[0]}: expected class ids from 0 to {MAX_ID}"
    return _Content(values, False, {value: palette[value] for value in values if value in palette}, raw.shape)


def _find_difference(contents: Mapping[Path, _Content]) -> list[str]:
    """Say why ids do not have one meaning in all label maps, while colours may; [] if nothing tells so."""
    if difference := describe_palettes({str(path): content.palette for path, content in contents.items()}):
        return [f"{difference}: colours were taken for the classes"]
    one_bit = next((path for path, c in contents.items() if c.palette.get(1) == BLACK_AND_WHITE[1]), None)
    white = next((path for path, c in contents.items() if 255 in c.values and not c.palette), None)
    if one_bit and white:
        return [f"White is 1 in {one_bit}, which has 1 bit, and 255 in {white}: colours were taken for the classes"]
    return []


def _as_colors(path: Path, content: _Content) -> _Content:
    colors = {color_of(value): count for value, count in count_values(read_colors(path)).items()}
    return _Content(colors, True, {}, content.size)

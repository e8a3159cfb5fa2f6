"""Legends below pictures: a coloured square and a name for each class, in columns."""

import functools
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data import Classes

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

TEXT_COLOR = (20, 20, 20)
BACKGROUND = (255, 255, 255)


def legend_font_size(height: int, width: int) -> int:
    """Size of the letters, pixels, that goes with a picture (height, width)."""
    return min(max(round(min(height, width) / 32), 13), 96)


def draw_legend(
    classes: Classes, shown: Sequence[int], width: int, font_size: int, room_for: Sequence[int] | None = None
) -> np.ndarray:
    """Draw a legend that is as wide as a picture, or as wide as one entry where the picture is narrower.

    Args:
        classes: names and colours.
        shown: the classes in it.
        width: of the picture, pixels.
        font_size: height of a line of text, pixels.
        room_for: the legend has the size that it has with these classes, and room for as many; None for those shown.

    Returns:
        (h, w, 3) uint8, RGB.
    """
    font = _font(font_size)
    room_for = shown if room_for is None else room_for
    gap, square = round(0.6 * font_size), font_size
    line = round(1.6 * font_size)
    names = {i: _one_line(classes.names[i]) for i in {*shown, *room_for}}
    widest = max((math.ceil(font.getlength(names[i])) for i in room_for), default=0)
    # Names are cut to fit beside the square, except in pictures so small that they could not be read.
    text_width = min(widest, max(width - square - 3 * gap, 16 * font_size))
    entry = square + text_width + 2 * gap
    columns = max(1, min((width - gap) // entry, len(room_for)))
    rows = -(-len(room_for) // columns)
    canvas = Image.new("RGB", (max(width, columns * entry + gap), rows * line + gap), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for place, i in enumerate(shown):
        # Down the columns, as one reads lists.
        column, row = divmod(place, rows)
        left, top = gap + column * entry, gap // 2 + row * line
        box = (left, top + (line - square) // 2, left + square, top + (line + square) // 2)
        draw.rectangle(box, fill=classes.colors[i], outline=TEXT_COLOR)
        text = _cut(names[i], font, text_width)
        draw.text((left + square + gap // 2, top + line // 2), text, fill=TEXT_COLOR, font=font, anchor="lm")
    return np.array(canvas)


@functools.cache
def _font(size: int) -> Font:
    """DejaVu Sans, which matplotlib brings, or the system; else Pillow's own font, which has ASCII alone."""
    matplotlib = find_spec("matplotlib")
    folder = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" if matplotlib and matplotlib.origin else Path()
    for name in (folder / "DejaVuSans.ttf", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(str(name), size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _one_line(name: str) -> str:
    return "".join(" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _cut(text: str, font: Font, width: int) -> str:
    """The text, or as much of its beginning as fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"

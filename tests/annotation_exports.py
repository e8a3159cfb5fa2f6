"""Folders as people and annotation services leave them, drawn small."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 48)  # height and width


def draw_label(index: int, values=(0, 1, 2)) -> np.ndarray:
    """Three values in stripes and a block that moves with the index."""
    label = np.full(SIZE, values[0], np.uint8)
    label[20:] = values[1 % len(values)]
    left = 5 * (index % 6)
    label[10:30, left : left + 12] = values[-1]
    return label


def write_image(path: Path, index: int = 0) -> Path:
    """A picture that shows where the classes are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([60 + 80 * draw_label(index)] * 3, -1)).save(path)
    return path


def write_label(path: Path, index: int = 0, values=(0, 1, 2), colors=None, palette=None) -> Path:
    """A label map of values, of colours for the values 0, 1, 2, or of values with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = draw_label(index, values)
    image = Image.fromarray(np.array(colors, np.uint8)[label] if colors else label)
    if palette:
        image.putpalette([part for color in palette for part in color])
    image.save(path)
    return path


def write_pairs(
    root: Path, image: str, label: str, count: int = 5, start: int = 0, **options
) -> list[tuple[Path, Path]]:
    """Images and label maps at these paths below a folder, in which {} is a number."""
    return [
        (write_image(root / image.format(i), i), write_label(root / label.format(i), i, **options))
        for i in range(start, start + count)
    ]

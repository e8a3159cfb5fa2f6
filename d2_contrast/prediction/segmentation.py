"""What a segmentor says about an image, and pictures of it."""

import os
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from ..data import Classes
from ..data.files import write_picture
from .legend import draw_legend, legend_font_size

ROWS_PER_BAND = 256


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of an image.

    Attributes:
        label_map: (H, W) train ids, uint8 (uint16 with more than 256 classes); positions in ``classes.names``.
        classes: names, colours and the dataset's own ids of the classes.
        image: what was segmented, (H, W, 3) uint8, RGB.
        probabilities: (K, H, W) of all classes, or None where they were not asked for.
    """

    label_map: np.ndarray
    classes: Classes
    image: np.ndarray
    probabilities: np.ndarray | None = None

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = ", ".join(f"{name} {share:.1%}" for name, share in list(self.shares().items())[:4])
        return f"Segmentation({height} x {width}: {shares}{', ...' if len(self.shares()) > 4 else ''})"

    def shares(self) -> dict[str, float]:
        """The share of the pixels that each class has, of those that occur, from the largest on."""
        counts = np.bincount(self.label_map.ravel(), minlength=len(self.classes))
        order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
        return {self.classes.names[i]: float(counts[i] / self.label_map.size) for i in order}

    def ids(self, kind: Literal["train", "dataset"] = "train") -> np.ndarray:
        """The label map in train ids, or in the ids of the dataset's own label files.

        Raises:
            ValueError: the kind is another one.
        """
        if kind == "train":
            return self.label_map
        if kind != "dataset":
            raise ValueError(f"the kind of ids is {kind!r}: expected 'train' or 'dataset'")
        table = np.array(self.classes.ids)
        return table.astype(np.uint8 if table.max() < 256 else np.uint16)[self.label_map]

    def color_map(self) -> np.ndarray:
        """The label map in the colours of the classes, (H, W, 3) uint8, RGB."""
        return self.classes.palette[self.label_map]

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The image with the colours of the classes over it; below it a legend of those that occur.

        Args:
            alpha: opacity of the colours, from 0 to 1.
            legend: draw the legend.

        Raises:
            ValueError: ``alpha`` is out of range.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: expected 0 to 1")
        return Image.fromarray(draw_overlay(self, alpha, self.legend() if legend else None))

    def save(self, path: str | os.PathLike, ids: Literal["train", "dataset"] = "train") -> None:
        """Write the label map as a PNG file of one channel, 8 or 16 bits.

        Raises:
            OSError: it cannot be written.
            ValueError: the name does not end with .png, since other formats may change the values.
        """
        if not os.fspath(path).lower().endswith(".png"):
            raise ValueError(f"{os.fspath(path)}: a label map is written as PNG, expected a name that ends with .png")
        write_picture(path, self.ids(ids))

    def legend(self) -> np.ndarray:
        """The legend of the classes that occur, (h, w, 3) uint8, RGB, for :func:`draw_overlay`."""
        height, width = self.label_map.shape
        present = np.flatnonzero(np.bincount(self.label_map.ravel(), minlength=len(self.classes)))
        return draw_legend(self.classes, present.tolist(), width, legend_font_size(height, width))


def draw_overlay(result: Segmentation, alpha: float = 0.5, legend: np.ndarray | None = None) -> np.ndarray:
    """Draw the classes over the image and a legend below it.

    Args:
        result: of an image (H, W).
        alpha: opacity of the colours, from 0 to 1.
        legend: (h, w, 3) uint8, RGB; None for none.

    Returns:
        (H + h, max(W, w), 3) uint8, RGB.
    """
    height, width = result.label_map.shape
    if legend is None:
        legend = np.empty((0, 0, 3), np.uint8)
    canvas = np.full((height + legend.shape[0], max(width, legend.shape[1]), 3), 255, np.uint8)
    palette = result.classes.palette
    for first in range(0, height, ROWS_PER_BAND):
        rows = slice(first, min(first + ROWS_PER_BAND, height))
        colors = palette[result.label_map[rows]]
        canvas[rows, :width] = cv2.addWeighted(result.image[rows], 1 - alpha, colors, alpha, 0)
    canvas[height:, : legend.shape[1]] = legend
    return canvas

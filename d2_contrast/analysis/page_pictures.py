"""The pictures of a page, inside it: data URIs of bounded size."""

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..visualize.predictions import CORRECT_COLOR
from ..visualize.style import DPI

# Longest side in pixels of what lies side by side, and of a figure.
PHOTO_SIDE, FIGURE_SIDE = 640, 2000
# All of a page together, in letters; larger ones are made smaller.
PHOTO_BYTES, FIGURE_BYTES = 4_000_000, 3_500_000
# Shades in which entropy is drawn: from blue, certain, to yellow, for colour-blind eyes as well.
SHADES = (255 * matplotlib.colormaps["cividis"](np.linspace(0, 1, 32))[:, :3]).round().astype(np.uint8)
# Ignored areas are striped: no class and no shade looks like this.
STRIPES = np.array([[118, 118, 118], [170, 170, 170]], np.uint8)

# (largest side in pixels) -> (bytes, type) of a picture.
Encoder = Callable[[int], tuple[bytes, str]]


def embed(pictures: Mapping[str, Encoder], side: int, limit: int) -> dict[str, str]:
    """Data URIs of pictures, together about ``limit`` letters or fewer.

    Args:
        pictures: by any name.
        side: largest side, pixels; a smaller one is taken where the pictures would exceed the limit.
        limit: letters.
    """
    while True:
        found = {name: _uri(*encode(side)) for name, encode in pictures.items()}
        total = sum(map(len, found.values()))
        if total <= limit or side <= 16:
            return found
        side = max(16, int(side * max(0.3, 0.95 * (limit / total) ** 0.5)))


def photo(image: np.ndarray) -> Encoder:
    """An image (H, W, 3) uint8 as JPEG."""

    def encode(side: int) -> tuple[bytes, str]:
        picture = Image.fromarray(image)
        picture.thumbnail((side, side))
        return _save(picture, "JPEG", quality=82), "image/jpeg"

    return encode


def class_map(classes: np.ndarray, counted: np.ndarray, colors: np.ndarray) -> Encoder:
    """A map of class ids (H, W) in the colours (K, 3) of the classes; what is not counted, (H, W), is striped."""
    return partial(_paint, classes, counted, colors)


def error_map(classes: np.ndarray, label: np.ndarray, counted: np.ndarray, wrong: tuple[int, int, int]) -> Encoder:
    """Where class ids and label, (H, W), differ, in the colour given; what is not counted is striped."""
    return partial(_paint, (classes != label).astype(np.uint8), counted, np.array([CORRECT_COLOR, wrong], np.uint8))


def entropy_map(entropy: np.ndarray, counted: np.ndarray) -> Encoder:
    """Entropy (H, W) from 0 to 1 in SHADES; what is not counted, (H, W), is striped."""
    shades = np.clip(np.nan_to_num(entropy.astype(np.float32)) * len(SHADES), 0, len(SHADES) - 1).astype(np.uint8)
    return partial(_paint, shades, counted, SHADES)


def drawn(picture: Figure | Image.Image) -> Encoder:
    """A figure, or a picture of one, as PNG with 256 colours."""
    if isinstance(picture, Figure):
        data = io.BytesIO()
        picture.savefig(data, format="png", dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
        picture = Image.open(data)
    picture = picture.convert("RGB")

    def encode(side: int) -> tuple[bytes, str]:
        smaller = picture.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        return _save(smaller.quantize(256, dither=Image.Dither.NONE), "PNG", optimize=True), "image/png"

    return encode


def _paint(ids: np.ndarray, counted: np.ndarray, colors: np.ndarray, side: int) -> tuple[bytes, str]:
    ids, counted = _shrink(ids, side), _shrink(counted, side)
    y, x = np.indices(ids.shape)
    stripes = (x + y) // max(2, max(ids.shape) // 80) % 2
    values, places = np.unique(np.where(counted, ids.astype(np.int64), len(colors) + stripes), return_inverse=True)
    palette = np.concatenate([colors, STRIPES])[values]
    places = places.reshape(ids.shape)
    if len(values) > 256:
        return _save(Image.fromarray(palette[places]), "PNG", optimize=True), "image/png"
    picture = Image.fromarray(places.astype(np.uint8), "P")
    picture.putpalette(palette.tobytes())
    return _save(picture, "PNG", optimize=True), "image/png"


def _shrink(array: np.ndarray, side: int) -> np.ndarray:
    """By nearest neighbour, to a longest side of at most ``side``."""
    scale = max(1, max(array.shape) / side)
    rows, columns = (
        ((np.arange(max(1, round(n / scale))) + 0.5) * scale).astype(int).clip(0, n - 1) for n in array.shape
    )
    return array[np.ix_(rows, columns)]


def _save(picture: Image.Image, format: str, **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **options)
    return data.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

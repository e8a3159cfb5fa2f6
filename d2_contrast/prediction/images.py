"""Images in the forms that Python programs have them in."""

import os
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.files import pillow_to_array, read_image

ImageLike: TypeAlias = str | os.PathLike | np.ndarray | Image.Image | Tensor

EXPECTED = "expected a path, an array (H, W, 3) or (H, W), a PIL image, or a tensor (3, H, W)"


def to_rgb(image: ImageLike) -> np.ndarray:
    """Bring an image to 8 bits per channel, as files are read: of 16 bits the upper 8 are taken, alpha is dropped.

    Args:
        image: one of

            - a path; the image is turned upright by its EXIF orientation;
            - a PIL image, turned upright, too;
            - an array (H, W, 3), (H, W), (H, W, 1) or (H, W, 4): RGB, uint8, uint16, or floats from 0 to 1;
            - a tensor (3, H, W), (H, W), (1, H, W) or (4, H, W) of the same.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        OSError: a file is missing, truncated or no image.
        TypeError, ValueError: it is none of these.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), "RGB")
    if isinstance(image, Image.Image):
        return pillow_to_array(image, "RGB", "this PIL image")
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        if values.dim() == 3:
            if values.shape[0] not in (1, 3, 4) and values.shape[2] in (1, 3, 4):
                raise ValueError(
                    f"this tensor has the shape {tuple(values.shape)}, expected (3, H, W): use "
                    "tensor.permute(2, 0, 1), or give an array"
                )
            values = values.permute(1, 2, 0)
        values = values.float() if values.dtype == torch.bfloat16 else values
        return _array_to_rgb(values.numpy(), "tensor", tuple(image.shape))
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, "array", image.shape)
    raise TypeError(f"an image is a {type(image).__name__}: {EXPECTED}")


def _array_to_rgb(values: np.ndarray, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array (H, W) or (H, W, C) to (H, W, 3) uint8; ``what`` and ``shape`` are for messages."""
    if values.ndim == 4:
        raise ValueError(f"this {what} has the shape {shape}: it holds several images, give them as list({what})")
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        hint = ""
        if values.ndim == 3 and values.shape[0] in (1, 3, 4):
            hint = ": use array.transpose(1, 2, 0)"
        raise ValueError(f"this {what} has the shape {shape}: {EXPECTED}{hint}")
    if 0 in values.shape:
        raise ValueError(f"this {what} has the shape {shape}: it holds no pixel")
    values = _to_8_bits(values[..., :3] if values.ndim == 3 else values[..., None], what)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _to_8_bits(values: np.ndarray, what: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if np.issubdtype(values.dtype, np.floating):
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also where a value is NaN
            raise ValueError(
                f"this {what} has floats from {_number(low)} to {_number(high)}: expected 0 to 1, or whole numbers "
                "from 0 to 255 as uint8"
            )
        return (values * 255).round().astype(np.uint8)
    raise ValueError(f"this {what} has values of type {values.dtype}: expected uint8, uint16, or floats from 0 to 1")


def _number(value: Any) -> str:
    return f"{float(value):.4g}"

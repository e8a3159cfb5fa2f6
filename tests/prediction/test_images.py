"""Images from anywhere, against images that are known."""

import cv2
import numpy as np
import pytest
import torch
from known_colors import COLORS, quarters
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from d2_contrast.prediction import to_rgb

RGB, LABEL = quarters()
GRAY = np.array([40, 90, 160, 220], np.uint8)[LABEL]
GRAY_RGB = np.stack([GRAY] * 3, axis=-1)
ALPHA = np.where(LABEL == 1, 0, 255).astype(np.uint8)


def palette_image() -> Image.Image:
    image = Image.fromarray(LABEL).convert("P")
    image.putpalette([value for color in COLORS for value in color])
    return image


def oriented(exif_value: int, turn) -> Image.Image:
    """An image that a viewer shows upright, stored in another orientation."""
    image = Image.fromarray(RGB).transpose(turn)
    image.getexif()[0x0112] = exif_value
    return image


def wide(values: np.ndarray) -> np.ndarray:
    """16 bits whose upper 8 are the values."""
    return values.astype(np.uint16) * 256 + 77


FILES = {
    "rgb.png": (lambda path: Image.fromarray(RGB).save(path), RGB),
    "rgb.bmp": (lambda path: Image.fromarray(RGB).save(path), RGB),
    "rgb.webp": (lambda path: Image.fromarray(RGB).save(path, lossless=True), RGB),
    "rgb.tif": (lambda path: Image.fromarray(RGB).save(path), RGB),
    "gray.png": (lambda path: Image.fromarray(GRAY).save(path), GRAY_RGB),
    "gray.tif": (lambda path: Image.fromarray(GRAY).save(path), GRAY_RGB),
    "rgba.png": (lambda path: Image.fromarray(np.dstack([RGB, ALPHA])).save(path), RGB),
    "gray_alpha.png": (lambda path: Image.fromarray(np.dstack([GRAY, ALPHA])).save(path), GRAY_RGB),
    "gray16.png": (lambda path: cv2.imwrite(str(path), wide(GRAY)), GRAY_RGB),
    "gray16.tif": (lambda path: cv2.imwrite(str(path), wide(GRAY)), GRAY_RGB),
    "rgb16.png": (lambda path: cv2.imwrite(str(path), wide(RGB[..., ::-1])), RGB),
    "palette.png": (lambda path: palette_image().save(path), RGB),
    "bits.png": (lambda path: Image.fromarray(LABEL > 1).save(path), 255 * np.stack([LABEL > 1] * 3, -1)),
}


@pytest.mark.parametrize("name", FILES)
def test_files_without_loss(tmp_path, name):
    write, expected = FILES[name]
    write(tmp_path / name)
    image = to_rgb(tmp_path / name)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(to_rgb(str(tmp_path / name)), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpeg(tmp_path, mode):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    expected = GRAY_RGB if mode == "L" else RGB
    if mode == "L":
        expected = np.stack([np.asarray(Image.fromarray(RGB).convert("L"))] * 3, axis=-1)
    assert np.abs(to_rgb(tmp_path / "a.jpg").astype(int) - expected).max() <= 8


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("value", "turn"), [(3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270), (2, Image.FLIP_LEFT_RIGHT)]
)
def test_orientation_is_that_of_a_viewer(tmp_path, suffix, value, turn):
    image = oriented(value, turn)
    image.save(tmp_path / f"a{suffix}", exif=image.getexif(), **({"quality": 100} if suffix == ".jpg" else {}))
    read = to_rgb(tmp_path / f"a{suffix}")
    assert read.shape == RGB.shape
    assert np.abs(read.astype(int) - RGB).mean() < 4
    np.testing.assert_array_equal(to_rgb(image), RGB)


def test_orientation_in_a_chunk_of_text(tmp_path):
    """As older versions of ImageMagick write it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(data):8d}\n{data.hex()}\n", zip=True)
    Image.fromarray(RGB).transpose(Image.ROTATE_90).save(tmp_path / "a.png", pnginfo=text)
    np.testing.assert_array_equal(to_rgb(tmp_path / "a.png"), RGB)


FORMS = {
    "array": (RGB, RGB),
    "a view of an array": (RGB[::-1, ::-2], RGB[::-1, ::-2]),
    "gray array": (GRAY, GRAY_RGB),
    "one channel": (GRAY[..., None], GRAY_RGB),
    "with alpha": (np.dstack([RGB, ALPHA]), RGB),
    "16 bits": (wide(RGB), RGB),
    "gray 16 bits": (wide(GRAY), GRAY_RGB),
    "floats": (RGB / 255, RGB),
    "float32": ((GRAY / 255).astype(np.float32), GRAY_RGB),
    "pillow": (Image.fromarray(RGB), RGB),
    "pillow gray": (Image.fromarray(GRAY), GRAY_RGB),
    "pillow palette": (palette_image(), RGB),
    "pillow with alpha": (Image.fromarray(np.dstack([RGB, ALPHA])), RGB),
    "tensor": (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
    "gray tensor": (torch.from_numpy(GRAY), GRAY_RGB),
    "one channel tensor": (torch.from_numpy(GRAY)[None], GRAY_RGB),
    "float tensor": (torch.from_numpy(RGB).permute(2, 0, 1).contiguous() / 255, RGB),
    "float tensor with gradient": (torch.from_numpy(GRAY / 255)[None].requires_grad_(), GRAY_RGB),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name):
    image, expected = FORMS[name]
    found = to_rgb(image)
    assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.transpose(2, 0, 1), r"shape \(3, 40, 60\).*use array.transpose\(1, 2, 0\)"),
        (torch.from_numpy(RGB), r"shape \(40, 60, 3\), expected \(3, H, W\): use tensor.permute\(2, 0, 1\)"),
        (RGB[None], r"shape \(1, 40, 60, 3\): it holds several images, give them as list\(array\)"),
        (torch.zeros(2, 3, 4, 5), r"several images, give them as list\(tensor\)"),
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\): expected a path"),
        (np.zeros((0, 5, 3), np.uint8), "holds no pixel"),
        (np.zeros(5, np.uint8), r"shape \(5,\): expected"),
        (RGB.astype(np.float32), "floats from 10 to 250: expected 0 to 1, or whole numbers from 0 to 255 as uint8"),
        (np.full((2, 2), np.nan), "floats from nan to nan"),
        (RGB.astype(np.int64), "values of type int64: expected uint8, uint16, or floats"),
        (Image.fromarray(GRAY.astype(np.float32)), "this PIL image: the pixels .* mode 'F'"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(image)


def test_other_types():
    with pytest.raises(TypeError, match="an image is a dict: expected a path"):
        to_rgb({"image": RGB})

"""Images, label maps and text on disk: reading the values that the files hold, and writing pictures."""

import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..extras import import_extra
from ..output import write_whole

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
# Pillow's modes of pictures with 8 bits per channel or fewer.
EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
# Label maps with several channels: how many of them hold the class id; the rest is alpha.
ID_CHANNELS = {"LA": 1, "PA": 1, "RGB": 3, "RGBA": 3}
BLACK_AND_WHITE = {0: (0, 0, 0), 1: (255, 255, 255)}

Color = tuple[int, int, int]


def limit_pixels(pixels: int) -> None:
    """From now on refuse images and label maps of more pixels in this process, by Pillow's own limit."""
    Image.MAX_IMAGE_PIXELS = pixels


@contextmanager
def pixels_limited(pixels: int) -> Iterator[None]:
    """As :func:`limit_pixels`, for a while."""
    before = Image.MAX_IMAGE_PIXELS
    limit_pixels(pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Read an image, upright by its EXIF orientation, in 8 bits: of 16 the upper 8 are taken.

    Args:
        file_name: path of the image.
        format: "RGB", "BGR", or another format of Detectron2's ``INPUT.FORMAT``.

    Returns:
        (H, W, C) array, uint8 for RGB and BGR.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is truncated or no image.
        ValueError: its pixels are neither 8 nor 16 bits (floats, 32 bits), or too many.
    """
    data = _read_bytes(file_name, "image")
    image = _open(data, file_name, "image")
    whole_png = image.format == "PNG" and data[-8:-4] == b"IEND"
    # OpenCV turns pictures by EXIF in the chunk for it, but not by XMP, nor by EXIF in a chunk of text.
    turned_by_pillow = (b"tiff:Orientation", b"Raw profile type exif")
    if whole_png and format in ("RGB", "BGR") and not any(chunk in data for chunk in turned_by_pillow):
        # A third faster than Pillow. It gives None if anything is wrong; Pillow then says what.
        array = _decode_by_opencv(data, cv2.IMREAD_COLOR)
        if array is not None:
            return array if format == "BGR" else cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    _load(image, data, file_name, "image")
    return pillow_to_array(image, format, file_name)


def pillow_to_array(image: Image.Image, format: str, name: str) -> np.ndarray:
    """The pixels of an image as :func:`read_image` gives them; ``name`` is for messages."""
    return convert_PIL_to_numpy(_to_8_bits(_upright(image), image.format, name), format)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image of which only the header was read, upright by its EXIF orientation."""
    width, height = image.size
    # Of TIFF files Pillow gives the upright size itself.
    is_turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def read_raw_label(file_name: str) -> np.ndarray:
    """Read a label map, upright by its EXIF orientation, with the values that the file holds.

    Returns:
        (H, W) array of an integer type.

    Raises:
        FileNotFoundError, OSError, ValueError: as :func:`read_label`.
    """
    data = _read_bytes(file_name, "label map")
    if file_name.lower().endswith(".mat"):
        label, kind = _decode_matlab(data, file_name), "MATLAB array"
    else:
        label, kind = _decode_label(data, file_name)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"{file_name}: a label map has one channel of class ids, but this is a {kind}")
    return label


def read_label_colors(file_name: str) -> np.ndarray:
    """Read a label map whose colours stand for classes, upright by its EXIF orientation.

    Returns:
        (H, W, 3) array of uint8.

    Raises:
        FileNotFoundError, OSError: as :func:`read_label`.
        ValueError: the format changes colours, or pixels of one colour differ by being transparent.
    """
    data = _read_bytes(file_name, "label map")
    image = _open(data, file_name, "label map")
    _load(image, data, file_name, "label map")
    _refuse_lossy(image, data, file_name)
    image = _upright(image)
    colors = np.asarray(image.convert("RGB"))
    if image.has_transparency_data:
        is_clear = np.asarray(image.convert("RGBA"))[..., 3] == 0
        packed = pack_colors(colors)
        if len(both := np.intersect1d(packed[is_clear], packed[~is_clear])):
            raise ValueError(
                f"{file_name}: the colour {color_of(both[0].item())} of this label map is transparent in some pixels "
                "and not in others, which may stand for two classes: write it without alpha channel, with a colour for "
                "each class"
            )
    return colors


def read_palette(file_name: str) -> dict[int, Color]:
    """The colours that a label map with a palette, or of 1 bit, gives to its values; {} if it gives none."""
    if file_name.lower().endswith(".mat"):
        return {}
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        if image.mode == "1":
            return dict(BLACK_AND_WHITE)
        flat = image.getpalette("RGB") if image.mode == "P" else None
    return {i // 3: (flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat or ()), 3)}


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as numbers, 65536 red + 256 green + blue."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue


def color_of(packed: int) -> Color:
    """The colour that a number of :func:`pack_colors` stands for."""
    return packed >> 16, packed >> 8 & 255, packed & 255


def is_utf8(path: str) -> bool:
    """Whether a path is UTF-8. Other bytes, which names from old archives have, are lone surrogates in Python."""
    return not re.search("[\ud800-\udfff]", path)


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        errors: "surrogateescape" takes other bytes for those of file names, as Python does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, or in another encoding.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a text file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ValueError(f"{path}, line {line}: byte {data[e.start]:#04x} is not UTF-8: save the file as UTF-8") from e


def write_picture(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write an array (H, W) of ids, or (H, W, 3) uint8 RGB, as the kind of file that its name tells.

    Raises:
        OSError: it cannot be written.
    """
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    suffix = os.path.splitext(os.fspath(path))[1]
    done, data = cv2.imencode(suffix, pixels)
    if not done:
        raise OSError(f"{os.fspath(path)}: this picture cannot be encoded")
    with write_whole(path) as file:
        file.write(data)


def as_file_name(text: str) -> str:
    """A text, such as the name of a dataset, as the name of one file or folder: no separators, no leading dot."""
    return re.sub(r"^\.|[^\w.-]", "_", text)[:100] or "_"


def _read_bytes(file_name: str, what: str) -> bytes:
    if not PathManager.isfile(file_name):
        raise FileNotFoundError(f"{file_name}: no such {what}")
    with PathManager.open(file_name, "rb") as f:
        return f.read()


def _open(data: bytes, file_name: str, what: str) -> Image.Image:
    """Read the header of an image; its pixels are decoded by :func:`_load`."""
    try:
        image = Image.open(io.BytesIO(data))
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # where Pillow only warns
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")
        return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        size = str(e).partition(",")[0]
        raise ValueError(
            f"{file_name}: this {what} is too large ({size}): cut it into tiles, or raise INPUT.MAX_PIXELS"
        ) from e
    except UnidentifiedImageError as e:
        # OpenCV knows more kinds of TIFF. Others are not tried: it takes seconds for some broken PNG files.
        is_tiff = data.startswith(TIFF_SIGNATURES)
        array = _decode_by_opencv(data, cv2.IMREAD_UNCHANGED) if is_tiff else None
        if array is None:
            raise _unreadable(data, file_name, what, "its format is unknown") from e
        channels = array.shape[2] if array.ndim == 3 else 1
        raise ValueError(
            f"{file_name}: this {what} has {channels} channels of {array.dtype}, which Pillow does not read: save it "
            "as PNG with 8 bits per channel"
        ) from e
    except Exception as e:
        raise _unreadable(data, file_name, what, e) from e


def _load(image: Image.Image, data: bytes, file_name: str, what: str) -> None:
    """Decode the pixels of an image that :func:`_open` gave."""
    if image.format == "PNG" and (altered := _find_altered_chunk(data)):
        raise _unreadable(data, file_name, what, f"its part {altered} does not match its checksum")
    try:
        image.load()
    except Exception as e:
        raise _unreadable(data, file_name, what, e) from e


def _find_altered_chunk(png: bytes) -> str:
    """The first chunk of a PNG file whose checksum is wrong, "" for none. Pillow checks only a few of them."""
    view = memoryview(png)
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(png):
        end = start + 12 + int.from_bytes(view[start : start + 4], "big")
        kind = bytes(view[start + 4 : start + 8])
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            # Names of chunks are letters; a broken one may hold a line break.
            return repr("".join(chr(c) if chr(c).isascii() and chr(c).isalpha() else "?" for c in kind))
        if kind == b"IEND":
            break
        start = end
    return ""


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation from 1 to 8, 1 if there is none. Of TIFF files Pillow removes it when it loads them."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing; Pillow's parser raises many kinds of exceptions
        return 1


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _unreadable(data: bytes, file_name: str, what: str, reason: object) -> OSError:
    """The error for a broken file. Pillow's parsers raise many kinds of exceptions for one."""
    reason = str(reason) or type(reason).__name__
    return OSError(
        f"{file_name}: cannot read this {what} ({len(data)} bytes), it is truncated or not an image: {reason}"
    )


def _decode_by_opencv(data: bytes, flags: int) -> np.ndarray | None:
    """Decode a whole image; None if OpenCV cannot, or will not because of its limits on sizes."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _to_8_bits(image: Image.Image, file_format: str, file_name: str) -> Image.Image:
    if image.mode in EIGHT_BIT_MODES:
        return image
    # PNG and PNM have at most 16 bits, which some versions of Pillow give as 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    raise ValueError(
        f"{file_name}: the pixels of this image have Pillow's mode {image.mode!r} (I: 32 bits or signed, F: floats): "
        "expected 8 or 16 bits per channel, scale it to one of them"
    )


def _decode_label(data: bytes, file_name: str) -> tuple[np.ndarray, str]:
    """A label map and what kind of image it is."""
    image = _open(data, file_name, "label map")
    bits = _bits_per_sample(image, data)
    _load(image, data, file_name, "label map")
    _refuse_lossy(image, data, file_name)
    if bits == 16 and image.mode in ID_CHANNELS:
        image = _keep_16_bits(image, data, file_name)
    image = _upright(image)
    kind = f"{image.mode} image"
    # Not converted: a palette must stay indices, and 16 bits must stay 16 bits.
    label = np.asarray(image)
    if image.mode == "1":
        return label.astype(np.uint8), kind
    if image.mode == "L" and bits in (2, 4):
        return label // (255 // (2**bits - 1)), kind  # Pillow has scaled the values
    if image.mode in ID_CHANNELS:
        return _one_channel(label, ID_CHANNELS[image.mode], kind, file_name), kind
    return label, kind


def _keep_16_bits(image: Image.Image, data: bytes, file_name: str) -> Image.Image:
    """The one channel that an image of several repeats, of which Pillow has dropped the lower 8 bits."""
    label = _decode_by_opencv(data, cv2.IMREAD_UNCHANGED)
    if label is None:
        raise _unreadable(data, file_name, "label map", "16 bits in several channels")
    ids = Image.fromarray(_one_channel(label, min(label.shape[2], 3), f"{image.mode} image", file_name))
    ids.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return ids


def _refuse_lossy(image: Image.Image, data: bytes, file_name: str) -> None:
    if image.format in ("JPEG", "MPO", "AVIF"):
        how = image.format
    elif image.format == "WEBP" and b"VP8 " in _chunks_of_webp(data):
        how = "lossy WebP"
    elif isinstance(image, TiffImageFile) and image.tag_v2.get(259) in (6, 7):
        how = "JPEG within TIFF"
    else:
        return
    raise ValueError(
        f"{file_name}: a label map must keep every value, but {how} changes them: write it as PNG from its source"
    )


def _chunks_of_webp(data: bytes) -> set[bytes]:
    names, start = set(), 12
    while start + 8 <= len(data):
        names.add(data[start : start + 4])
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + length + length % 2
    return names


def _bits_per_sample(image: Image.Image, data: bytes) -> int:
    """Bits of each value in a file of which only the header was read."""
    if image.format == "PNG":
        return data[24]
    if isinstance(image, TiffImageFile):
        return image.tag_v2.get(258, (1,))[0]
    return 8


def _one_channel(label: np.ndarray, id_channels: int, kind: str, file_name: str) -> np.ndarray:
    """The one channel that a label map (H, W, C) repeats. Alpha says nothing if it is the same everywhere."""
    ids, alpha = label[..., :id_channels], label[..., id_channels:]
    differs = (ids != ids[..., :1]).any(axis=2)
    if differs.any():
        row, column = np.argwhere(differs)[0]
        raise ValueError(
            f"{file_name}: a label map has one channel of class ids, but this is a {kind} whose channels differ "
            f"({ids[row, column].tolist()} in row {row}, column {column}): write class ids instead of colours"
        )
    if alpha.size and alpha.min() != alpha.max():
        raise ValueError(
            f"{file_name}: this label map is partly transparent, which says nothing about the class: write it "
            "without alpha channel, with the ignore label where there is no class"
        )
    return label[..., 0]


def _decode_matlab(data: bytes, file_name: str) -> np.ndarray:
    """The variable LabelMap of a MATLAB file, as the original PASCAL-Context has them."""
    loadmat = import_extra("scipy.io", "matlab").loadmat
    try:
        return loadmat(io.BytesIO(data))["LabelMap"]
    except KeyError as e:
        raise ValueError(f"{file_name}: this MATLAB file has no variable LabelMap") from e
    except Exception as e:  # SciPy's parser raises many kinds
        raise OSError(f"{file_name}: cannot read this MATLAB file, it is truncated or none: {e}") from e

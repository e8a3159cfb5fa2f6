"""Reading images and label maps from disk, with the values that the files hold."""

import io

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from ..extras import import_extra

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Read an image, upright by its EXIF orientation.

    Args:
        file_name: path of the image.
        format: "RGB", "BGR", or another format of Detectron2's ``INPUT.FORMAT``.

    Returns:
        (H, W, C) array, uint8 for RGB and BGR.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is truncated or no image.
    """
    data = _read_bytes(file_name, "image")
    whole_png = data.startswith(PNG_SIGNATURE) and data[-8:-4] == b"IEND"
    if whole_png and format in ("RGB", "BGR"):
        # A third faster than Pillow; gives None if anything is wrong, and Pillow then says what.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return image if format == "BGR" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image = ImageOps.exif_transpose(_decode(data, file_name, "image"))
    return convert_PIL_to_numpy(image, format)


def read_raw_label(file_name: str) -> np.ndarray:
    """Read a label map with the values that the file holds.

    Returns:
        (H, W) array of an integer type.

    Raises:
        FileNotFoundError, OSError, ValueError: as :func:`read_label`.
    """
    data = _read_bytes(file_name, "label map")
    if file_name.endswith(".mat"):
        return _decode_matlab(data, file_name)
    image = _decode(data, file_name, "label map")
    if image.mode == "1":
        image = image.convert("L").point(lambda v: v // 255)
    # Not converted: a palette must stay indices, and 16 bits must stay 16 bits.
    label = np.asarray(image)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"{file_name}: a label map has one channel of class ids, but this is a {image.mode} image")
    return label


def _read_bytes(file_name: str, what: str) -> bytes:
    if not PathManager.isfile(file_name):
        raise FileNotFoundError(f"{file_name}: no such {what}")
    with PathManager.open(file_name, "rb") as f:
        return f.read()


def _decode(data: bytes, file_name: str, what: str) -> Image.Image:
    """Decode a whole image, with an error that says which file and why."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    # Pillow reports broken files through several exceptions, SyntaxError among them.
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise OSError(
            f"{file_name}: cannot read this {what} ({len(data)} bytes), it is truncated or not an image: {e}"
        ) from e
    return image


def _decode_matlab(data: bytes, file_name: str) -> np.ndarray:
    """The variable LabelMap of a MATLAB file, as the original PASCAL-Context has them."""
    loadmat = import_extra("scipy.io", "matlab").loadmat
    try:
        return loadmat(io.BytesIO(data))["LabelMap"]
    except KeyError as e:
        raise ValueError(f"{file_name}: this MATLAB file has no variable LabelMap") from e
    except Exception as e:  # SciPy lets whatever goes wrong in its parser through
        raise OSError(f"{file_name}: cannot read this MATLAB file, it is truncated or none: {e}") from e

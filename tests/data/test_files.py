"""Reading files: every kind of image and label map, broken ones, and ones that are too large."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat

from d2_contrast.data import read_image
from d2_contrast.data.files import (
    as_file_name,
    limit_pixels,
    read_label_colors,
    read_raw_label,
    read_text,
    upright_size,
)

# Channels of the colour types of a PNG file: gray, RGB, palette, gray with alpha, RGBA.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def save(path, array, **kwargs):
    Image.fromarray(np.asarray(array)).save(path, **kwargs)
    return str(path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, array, color_type, bits):
    """A PNG file of any kind: (H, W, C) values as they are, with a random palette."""
    height, width = array.shape[:2]
    rows = array.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    if bits < 8:
        rows = np.packbits(np.unpackbits(rows[..., None], axis=2)[..., 8 - bits :].reshape(height, -1), axis=1)
    palette = np.random.RandomState(1).randint(0, 256, 3 * 2 ** min(bits, 8)).astype(np.uint8).tobytes()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
        + (chunk(b"PLTE", palette) if color_type == 3 else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )
    return np.frombuffer(palette, np.uint8).reshape(-1, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("read", [read_image, read_raw_label])
def test_missing_and_truncated_files_are_named(tmp_path, read, suffix):
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(FileNotFoundError, match=rf"x\.{suffix}: no such"):
        read(str(path))
    save(path, np.random.RandomState(0).randint(0, 255, (40, 50), np.uint8))
    data = path.read_bytes()
    for size in (0, 20, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:size])
        with pytest.raises(OSError, match=rf"x\.{suffix}: cannot read .*truncated"):
            read(str(path))


def test_damaged_png_is_named(tmp_path):
    path = tmp_path / "x.png"
    save(path, np.random.RandomState(0).randint(0, 255, (40, 50, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"x\.png: cannot read"):
        read_image(str(path))


@pytest.mark.parametrize("color_type", [0, 2, 3, 6])
def test_every_flipped_bit_of_a_png_label_is_noticed(tmp_path, color_type):
    """Or it changes nothing, as in a part that no decoder reads."""
    label = np.random.RandomState(0).randint(0, 4, (6, 8)).astype(np.uint8)
    channels = [label] * min(PNG_CHANNELS[color_type], 3) + [np.full_like(label, 255)] * (color_type == 6)
    path = tmp_path / "x.png"
    write_png(path, np.stack(channels, axis=2), color_type, bits=8)
    intact, noticed = path.read_bytes(), 0
    np.testing.assert_array_equal(read_raw_label(str(path)), label)
    for bit in range(8 * len(intact)):
        data = bytearray(intact)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read_raw_label(str(path))
        except (OSError, ValueError) as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            noticed += 1
        else:
            np.testing.assert_array_equal(found, label)
    assert noticed > 0.9 * 8 * len(intact)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_image_channel_order(tmp_path, suffix):
    rgb = np.random.RandomState(0).randint(0, 255, (4, 5, 3), np.uint8)
    path = save(tmp_path / f"x.{suffix}", rgb)
    np.testing.assert_array_equal(read_image(path, "RGB"), rgb)
    np.testing.assert_array_equal(read_image(path, "BGR"), rgb[..., ::-1])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_image_is_turned_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[:, 8:] = 255
    out = read_image(save(tmp_path / f"x.{suffix}", rgb, exif=exif))
    assert out.shape == (16, 8, 3)
    assert out[:6].max() < 30 and out[10:].min() > 220


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_broken_exif_says_nothing(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", np.zeros((8, 16, 3), np.uint8), exif=b"Exif\0\0broken")
    assert read_image(path).shape == (8, 16, 3)


PNG_KINDS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)),
    *((3, bits) for bits in (1, 2, 4, 8)),
    *((color_type, bits) for color_type in (2, 4, 6) for bits in (8, 16)),
]


@pytest.mark.parametrize(("color_type", "bits"), PNG_KINDS)
def test_png_of_every_kind(tmp_path, color_type, bits):
    """By OpenCV, and by Pillow for a file with bytes after its end: both as the specification says."""
    values = np.random.RandomState(0).randint(0, 2**bits, (9, 11, PNG_CHANNELS[color_type]))
    palette = write_png(tmp_path / "x.png", values, color_type, bits)
    if color_type == 3:
        expected = palette[values[..., 0]]
    else:
        gray_or_rgb = values[..., : 3 if color_type in (2, 6) else 1]
        eight = gray_or_rgb >> 8 if bits == 16 else gray_or_rgb * 255 // (2**bits - 1)
        expected = np.broadcast_to(eight, (9, 11, 3))
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")), expected)
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data + b"left by a camera")
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")), expected)
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png"), "BGR"), expected[..., ::-1])


LEVELS = (np.arange(64, dtype=np.uint16) * 1024 + 13).reshape(8, 8)


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_tiff_keeps_its_levels(tmp_path, byte_order):
    mode = "I;16B" if byte_order == ">u2" else "I;16"
    Image.frombytes(mode, (8, 8), LEVELS.astype(byte_order).tobytes()).save(tmp_path / "x.tif")
    assert Image.open(tmp_path / "x.tif").mode == mode
    image = read_image(str(tmp_path / "x.tif"))
    np.testing.assert_array_equal(image, np.repeat((LEVELS >> 8)[..., None], 3, axis=2))
    assert len(np.unique(image)) == 64
    np.testing.assert_array_equal(read_raw_label(str(tmp_path / "x.tif")), LEVELS)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_16_bit_images_equal_opencvs(tmp_path, suffix, channels):
    path = str(tmp_path / f"x.{suffix}")
    deep = np.random.RandomState(0).randint(0, 65536, (8, 9, channels)).astype(np.uint16)
    cv2.imwrite(path, deep)
    values = cv2.imread(path, cv2.IMREAD_UNCHANGED).reshape(8, 9, channels)[..., :3]
    np.testing.assert_array_equal(read_image(path, "BGR"), np.broadcast_to(values >> 8, (8, 9, 3)))


@pytest.mark.parametrize(
    ("dtype", "channels", "message"),
    [
        (np.float32, 1, "mode 'F'"),
        (np.int32, 1, "mode 'I'"),
        (np.int16, 1, "mode 'I'"),
        (np.float32, 3, "3 channels of float32"),
        (np.float64, 1, "1 channels of float64"),
        (np.int32, 4, "4 channels of int32"),
    ],
)
def test_pixels_of_other_types_are_refused(tmp_path, dtype, channels, message):
    path = str(tmp_path / "deep.tif")
    cv2.imwrite(path, np.linspace(0, 1, 64 * channels).reshape(8, 8, channels).astype(dtype))
    with pytest.raises(ValueError, match=rf"deep\.tif: .*{message}.*8 (or 16 )?bits per channel"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "LAB"])
def test_other_modes_of_pillow(tmp_path, mode):
    rgb = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 9, 3), np.uint8))
    source = Image.new("LAB", (9, 8)) if mode == "LAB" else rgb.convert(mode)
    source.save(tmp_path / "x.tif")
    if mode == "LAB":
        with pytest.raises(ValueError, match=r"x\.tif: .*mode 'LAB'"):
            read_image(str(tmp_path / "x.tif"))
    else:
        np.testing.assert_array_equal(read_image(str(tmp_path / "x.tif")), np.asarray(source.convert("RGB")))


def test_cmyk_photograph(tmp_path):
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:] = (200, 40, 90)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "x.jpg", quality=100)
    assert abs(read_image(str(tmp_path / "x.jpg")).astype(int) - rgb).max() < 4


@pytest.mark.parametrize("read", [read_image, read_raw_label])
def test_size_beyond_the_limit_of_a_library(tmp_path, monkeypatch, read):
    path = save(tmp_path / "large.png", np.zeros((40, 50), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back afterwards
    limit_pixels(900)  # Pillow refuses twice as many itself
    with pytest.raises(ValueError, match=r"large\.png: .*2000 pixels.* limit of 1800 pixels.*tiles.*INPUT.MAX_PIXELS"):
        read(path)
    limit_pixels(1999)
    with pytest.raises(ValueError, match=r"large\.png: .*50 x 40 pixels exceed the limit of 1999.*INPUT.MAX_PIXELS"):
        read(path)
    limit_pixels(2000)
    assert read(path).shape[:2] == (40, 50)


def test_limit_of_opencv_is_none_of_ours(tmp_path, monkeypatch):
    rgb = np.random.RandomState(0).randint(0, 256, (8, 9, 3), np.uint8)
    path = save(tmp_path / "x.png", rgb)

    def refuse(*_):
        raise cv2.error("pixels <= CV_IO_MAX_IMAGE_PIXELS")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of what it finds
def test_whatever_breaks_in_a_decoder_is_named(tmp_path, monkeypatch):
    """Random changes to small files: each is read, or is an error that names the file."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # a changed size takes no time
    rng = np.random.RandomState(0)
    files = []
    for suffix in ("png", "tif", "bmp", "jpg", "webp"):
        files.append(tmp_path / f"x.{suffix}")
        save(files[-1], rng.randint(0, 256, (6, 7, 3), np.uint8))
    for i in range(300):
        source = files[i % len(files)]
        data = bytearray(source.read_bytes())
        for position in rng.randint(0, min(len(data), 200), rng.randint(1, 6)):
            data[position] = rng.randint(256)
        path = tmp_path / f"broken{source.suffix}"
        path.write_bytes(data)
        for read in (read_image, read_raw_label):
            try:
                read(str(path))
            except (OSError, ValueError) as error:
                assert str(error).startswith(f"{path}: "), error


def test_palette_label_keeps_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), mode="L").convert("P")
    image.putpalette([200, 10, 30, 0, 255, 0, 9, 9, 9, 200, 10, 30])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_raw_label(str(tmp_path / "a.png")), [[0, 1], [2, 3]])


def test_one_bit_label_is_zero_and_one(tmp_path):
    path = save(tmp_path / "a.png", np.array([[False, True]]))
    np.testing.assert_array_equal(read_raw_label(path), [[0, 1]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_label_values_are_those_of_the_file_at_any_depth(tmp_path, bits):
    values = np.random.RandomState(0).randint(0, 2**bits, (9, 11, 1))
    for color_type in (0, 3) if bits < 16 else (0,):
        write_png(tmp_path / "x.png", values, color_type, bits)
        np.testing.assert_array_equal(read_raw_label(str(tmp_path / "x.png")), values[..., 0])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("color_type", [2, 4, 6])
def test_label_that_is_the_same_in_all_channels(tmp_path, color_type, bits):
    ids = np.random.RandomState(0).randint(0, 2**bits, (9, 11, 1))
    channels = PNG_CHANNELS[color_type]
    values = np.repeat(ids, channels, axis=2)
    if color_type != 2:
        values[..., -1] = 2**bits - 1
    write_png(tmp_path / "x.png", values, color_type, bits)
    np.testing.assert_array_equal(read_raw_label(str(tmp_path / "x.png")), ids[..., 0])

    if color_type != 2:
        values[3, 4, -1] = 7
        write_png(tmp_path / "x.png", values, color_type, bits)
        with pytest.raises(ValueError, match=r"x\.png: .*partly transparent"):
            read_raw_label(str(tmp_path / "x.png"))
    if color_type != 4:
        values[3, 4, :3] = 1, 2, 3
        write_png(tmp_path / "x.png", values, color_type, bits)
        with pytest.raises(ValueError, match=r"x\.png: .*one channel.*RGBA? .*differ \(.*row 3, column 4\)"):
            read_raw_label(str(tmp_path / "x.png"))


@pytest.mark.parametrize(
    ("array", "mode"), [(np.zeros((4, 5), np.float32), "F"), (np.zeros((4, 5, 4), np.uint8), "CMYK")]
)
def test_label_of_another_kind_is_refused(tmp_path, array, mode):
    Image.fromarray(array, mode=mode).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"x\.tif: .*one channel of class ids, but this is a {mode} image"):
        read_raw_label(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "L"), ("png", "P"), ("png", "I;16"), ("png", "RGB"), ("tif", "L"), ("webp", "RGB")]
)
def test_label_is_turned_as_its_image(tmp_path, suffix, mode, orientation):
    values = np.random.RandomState(0).randint(0, 200, (5, 7)).astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(np.repeat(values[..., None], 3, axis=2) if mode == "RGB" else values)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    (image.convert("P") if mode == "P" else image).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    turned = image.convert("L") if mode != "I;16" else image
    turned.getexif()[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(turned))
    np.testing.assert_array_equal(read_raw_label(str(tmp_path / f"x.{suffix}")), turned)
    if mode == "RGB":
        colors = read_label_colors(str(tmp_path / f"x.{suffix}"))
        np.testing.assert_array_equal(colors, np.repeat(turned[..., None], 3, axis=2))
    with Image.open(tmp_path / f"x.{suffix}") as opened:
        assert upright_size(opened) == turned.shape


def test_label_of_16_bits_in_several_channels_is_turned(tmp_path):
    values = np.random.RandomState(0).randint(0, 2**16, (5, 7, 1)).repeat(3, axis=2).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    write_png(tmp_path / "x.png", values, 2, 16)
    data = (tmp_path / "x.png").read_bytes()
    orientation = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "x.png").write_bytes(data[:33] + orientation + data[33:])  # after the header
    np.testing.assert_array_equal(read_raw_label(str(tmp_path / "x.png")), np.rot90(values[..., 0], -1))


LOSSY = [
    ("x.jpg", {}, "JPEG"),
    ("x.png", {"format": "JPEG"}, "JPEG"),
    ("x.webp", {"quality": 100}, "lossy WebP"),
    ("y.webp", {"quality": 100, "exif": b"Exif\0\0II*\0"}, "lossy WebP"),
    ("x.tif", {"compression": "jpeg"}, "JPEG within TIFF"),
]


@pytest.mark.parametrize(("name", "options", "how"), LOSSY)
def test_label_in_a_lossy_format_is_refused(tmp_path, name, options, how):
    path = save(tmp_path / name, np.zeros((8, 8, 3), np.uint8), **options)
    for read in (read_raw_label, read_label_colors):
        with pytest.raises(ValueError, match=rf"{name}: .*but {how} changes"):
            read(path)


def test_colors_of_a_label(tmp_path):
    colors = np.random.RandomState(0).randint(1, 256, (6, 8, 4)).astype(np.uint8)
    colors[:3, :, :3] = 0
    colors[:3, :, 3] = 0  # a transparent background
    path = save(tmp_path / "x.png", colors)
    np.testing.assert_array_equal(read_label_colors(path), colors[..., :3])
    colors[4, 4, :3] = 0
    with pytest.raises(ValueError, match=r"x\.png: the colour \(0, 0, 0\) .*transparent in some"):
        read_label_colors(save(tmp_path / "x.png", colors))


def test_matlab_file_is_checked_like_others(tmp_path):
    for name, content, message in (
        ("a.mat", {"LabelMap": np.zeros((3, 4))}, "one channel of class ids, but this is a MATLAB array"),
        ("b.MAT", {"Label": np.zeros((3, 4), np.uint8)}, "no variable LabelMap"),
    ):
        savemat(tmp_path / name, content, appendmat=False)
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            read_raw_label(str(tmp_path / name))


def test_text_is_utf8(tmp_path):
    path = tmp_path / "names.yaml"
    for data in ("trä\nväg".encode(), "trä\nväg".encode("utf-8-sig")):
        path.write_bytes(data)
        assert read_text(path) == "trä\nväg"
    for encoding, place in (("latin-1", "line 2: byte 0xe4"), ("utf-16", "line 1: byte 0xff")):
        path.write_bytes("tree\nväg".encode(encoding))
        with pytest.raises(ValueError, match=rf"names\.yaml, {place} is not UTF-8"):
            read_text(path)
    with pytest.raises(FileNotFoundError, match="there is no file .*gone"):
        read_text(tmp_path / "gone")
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("shapes_val", "shapes_val"),
        ("a/b", "a_b"),
        ("..", "_."),
        ("", "_"),
        ("/etc", "_etc"),
        ("Bäume 1.5", "Bäume_1.5"),
    ],
)
def test_names_as_file_names(tmp_path, name, file_name):
    assert as_file_name(name) == file_name
    (tmp_path / as_file_name(name)).mkdir()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(as_file_name("x" * 999)) <= 100

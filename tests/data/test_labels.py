from pathlib import Path

import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from d2_contrast.data import read_image, read_label
from d2_contrast.data.labels import detect_label_encoding

RAW = {0: 255, **{i: i - 1 for i in range(1, 5)}}
SHIFTED = {**{i: i for i in range(4)}, 255: 255}
ENCODINGS = {"raw": RAW, "shifted": SHIFTED}


def metadata(**kwargs):
    return Metadata(name="toy").set(stuff_classes=list("abcd"), ignore_label=255, **kwargs)


def save(path, array, **kwargs):
    Image.fromarray(np.asarray(array)).save(path, **kwargs)
    return str(path)


def test_label_without_a_table_holds_train_ids(tmp_path):
    label = np.array([[0, 3], [255, 1]], np.uint8)
    out = read_label(save(tmp_path / "a.png", label), metadata())
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, label)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_goes_through_the_table(tmp_path, dtype):
    table = {7: 0, 200: 1, 3: 255} if dtype == np.uint8 else {7: 0, 459: 1, 3: 255}
    values = list(table)
    path = save(tmp_path / "a.png", np.array([values, values[::-1]], dtype))
    out = read_label(path, metadata(label_encodings={"raw": table}))
    np.testing.assert_array_equal(out, [[0, 1, 255], [255, 1, 0]])


def test_palette_label_keeps_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), mode="L").convert("P")
    image.putpalette([200, 10, 30, 0, 255, 0, 9, 9, 9, 200, 10, 30])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(str(tmp_path / "a.png"), metadata()), [[0, 1], [2, 3]])


def test_one_bit_label_is_zero_and_one(tmp_path):
    path = save(tmp_path / "a.png", np.array([[False, True]]))
    np.testing.assert_array_equal(read_label(path, metadata()), [[0, 1]])


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 4), (np.uint8, 254), (np.uint16, 60000)])
def test_value_outside_the_classes_names_file_value_and_range(tmp_path, dtype, value):
    path = save(tmp_path / "bad.png", np.array([[0, 1, value, value]], dtype))
    with pytest.raises(ValueError, match=rf"bad\.png.*value {value} \(2 pixels\).*'toy'.*0\.\.3, 255"):
        read_label(path, metadata())


def test_colour_label_is_refused(tmp_path):
    path = save(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"rgb\.png.*one channel.*RGB"):
        read_label(path, metadata())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("read", [read_image, lambda name: read_label(name, metadata())])
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


def write_all(folder, labels):
    return [save(folder / f"{i}.png", np.array(x, np.uint8)) for i, x in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([[[1, 2]], [[0, 4]]], "raw"),  # 4 is no train id
        ([[[1, 2]], [[0, 3]]], "raw"),  # fits both: the first
        ([[[1, 2]], [[0, 255]]], "shifted"),  # raw labels have no 255
    ],
)
def test_encoding_is_told_by_the_values(tmp_path, labels, found):
    assert detect_label_encoding(write_all(tmp_path, labels), ENCODINGS) == found


def test_labels_that_fit_no_encoding_are_an_error(tmp_path):
    files = write_all(tmp_path, [[[4, 255]], [[0, 4, 255]]])
    with pytest.raises(ValueError, match=r"1\.png.*raw has 0\.\.4; shifted has 0\.\.3, 255.*0, 4, 255.*in .*0\.png"):
        detect_label_encoding(files, ENCODINGS)


def test_labels_of_different_encodings_are_an_error(tmp_path):
    files = write_all(tmp_path, [[[0, 3]], [[0, 9]]])
    with pytest.raises(ValueError, match=r"1\.png.*other has 0, 9\); values found so far: 0, 3, 9"):
        detect_label_encoding(files, {**ENCODINGS, "other": {0: 255, 9: 0}})


def test_bad_files_do_not_hide_the_encoding_of_the_others(tmp_path):
    files = write_all(tmp_path, [[[1, 9]], [[1, 2]], [[0, 255]], [[3, 3]]])
    Path(files[1]).write_bytes(b"no image")
    assert detect_label_encoding(files, ENCODINGS) == "shifted"


def test_ambiguous_dataset_must_be_loaded_before_its_labels_are_read(tmp_path):
    path = write_all(tmp_path, [[[1, 2]]])[0]
    with pytest.raises(ValueError, match=r"DatasetCatalog\.get\('toy'\)"):
        read_label(path, metadata(label_encodings=ENCODINGS))
    np.testing.assert_array_equal(read_label(path, metadata(label_encodings=ENCODINGS, label_encoding="raw")), [[0, 1]])
    np.testing.assert_array_equal(
        read_label(path, metadata(label_encodings=ENCODINGS, label_encoding="shifted")), [[1, 2]]
    )

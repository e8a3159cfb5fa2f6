from pathlib import Path

import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from d2_contrast.data import read_label
from d2_contrast.data.labels import count_label, detect_label_encoding

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


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 4), (np.uint8, 254), (np.uint16, 60000)])
def test_value_outside_the_classes_names_file_value_and_range(tmp_path, dtype, value):
    path = save(tmp_path / "bad.png", np.array([[0, 1, value, value]], dtype))
    with pytest.raises(ValueError, match=rf"bad\.png.*value {value} \(2 pixels\).*'toy'.*0\.\.3, 255"):
        read_label(path, metadata())


@pytest.mark.parametrize(
    ("classes", "ignore_label", "dtype"),
    [(254, 255, np.uint8), (254, 254, np.uint8), (255, 255, np.int32), (256, 65535, np.int32), (3, 65535, np.int32)],
)
def test_train_ids_are_as_wide_as_they_must_be(tmp_path, classes, ignore_label, dtype):
    many = Metadata(name="many").set(stuff_classes=[f"c{i}" for i in range(classes)], ignore_label=ignore_label)
    label = np.array([[*range(classes), ignore_label]], np.uint16)
    out = read_label(save(tmp_path / "a.png", label), many)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, label)
    with pytest.raises(ValueError, match=r"b\.png: label value 60000 \(1 pixels\)"):
        read_label(save(tmp_path / "b.png", np.array([[0, 60000]], np.uint16)), many)


def test_train_ids_are_as_wide_as_an_ignore_label_that_no_value_means(tmp_path):
    wide = Metadata(name="wide").set(stuff_classes=["a", "b"], ignore_label=65535, label_encodings={"x": {1: 0, 2: 1}})
    out = read_label(save(tmp_path / "a.png", np.array([[1, 2]], np.uint8)), wide)
    assert out.dtype == np.int32 and out.tolist() == [[0, 1]]


def test_eight_bit_files_of_a_dataset_with_wide_train_ids(tmp_path):
    table = {i: 300 + i for i in range(200)}
    many = Metadata(name="many").set(
        stuff_classes=[f"c{i}" for i in range(500)], ignore_label=65535, label_encodings={"raw": {**table, 255: 65535}}
    )
    label = np.arange(199, dtype=np.uint8)[None]
    np.testing.assert_array_equal(read_label(save(tmp_path / "a.png", label), many), label.astype(int) + 300)
    with pytest.raises(ValueError, match=r"label value 200 .*expected 0\.\.199, 255"):
        read_label(save(tmp_path / "b.png", label + 56), many)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counts_equal_those_of_the_label_itself(tmp_path, dtype):
    toy = metadata(label_encodings={"raw": {0: 255, 9: 255, 1: 0, 2: 2, 3: 2, 4: 3}})
    raw = np.random.RandomState(0).choice([0, 1, 2, 3, 9], (20, 30)).astype(dtype)
    classes, ignored = count_label(raw, "a.png", toy)
    label = read_label(save(tmp_path / "a.png", raw), toy)
    np.testing.assert_array_equal(classes, [(label == i).sum() for i in range(4)])
    assert ignored == {0: (raw == 0).sum(), 9: (raw == 9).sum()}
    with pytest.raises(ValueError, match=r"a\.png: label value 7 \(1 pixels\)"):
        count_label(np.array([[7, 0]], dtype), "a.png", toy)


def test_a_class_that_is_ignored_is_counted_as_ignored():
    toy = Metadata(name="toy").set(stuff_classes=list("abc"), ignore_label=1)
    classes, ignored = count_label(np.array([[0, 1, 1, 2]], np.uint8), "a.png", toy)
    assert classes.tolist() == [1, 0, 1] and ignored == {1: 2}


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

import numpy as np
import pytest
from annotation_exports import SIZE, draw_label, write_image, write_label
from PIL import Image

from d2_contrast.own_data import choose_classes, scan_labels

COLORS = [(0, 0, 0), (120, 180, 80), (190, 170, 140)]


def choose(folder, *files, **options):
    """Classes for three label maps, with files (name, text) beside them."""
    paths = [write_label(folder / f"{i}.png", i, **options) for i in range(3)]
    for name, text in files:
        (folder / name).write_text(text)
    return choose_classes(scan_labels(paths), [folder])


def told(classes):
    return " ".join(classes.notes)


def test_scan_counts_pixels_and_files(tmp_path):
    paths = [write_label(tmp_path / "a.png", 0, values=(0, 0, 7)), write_label(tmp_path / "b.png", 1, values=(0, 3, 3))]
    scan = scan_labels(paths)
    labels = [draw_label(0, (0, 0, 7)), draw_label(1, (0, 3, 3))]
    assert scan.values == {v: sum(int((x == v).sum()) for x in labels) for v in (0, 3, 7)}
    assert scan.images == {0: 2, 3: 1, 7: 1}
    assert not scan.is_color and not scan.palette and set(scan.sizes.values()) == {SIZE}


def test_values_without_names(tmp_path):
    classes = choose(tmp_path, values=(0, 4, 255))
    assert classes.names == ["class_0", "class_1"] and classes.codes == [[0], [4]] and classes.ignored == [255]
    assert "255 (" in told(classes) and "ignored" in told(classes) and not classes.colors


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_masks_of_two_values(values, tmp_path):
    classes = choose(tmp_path, values=values)
    assert classes.names == ["background", "foreground"] and classes.codes == [[v] for v in values]
    assert not classes.ignored and "0 was taken for the background" in told(classes)


@pytest.mark.parametrize(("text", "names"), [("cat\n", ["background", "cat"]), ("none\ncat\n", ["none", "cat"])])
def test_named_masks_of_0_and_255(text, names, tmp_path):
    classes = choose(tmp_path, ("classes.txt", text), values=(0, 255))
    assert classes.names == names and classes.codes == [[0], [255]] and not classes.ignored


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, lawn\n2, path\n"),
        ("classes.txt", "background\nlawn\npath\n"),
        ("classes.txt", "\ufeff0: background\r\n1: lawn\r\n2: path\r\n"),
        ("labels.txt", "background\nlawn\npath"),
        ("obj_class_to_machine_color.json", '{"background": [0, 0, 0], "lawn": [1, 1, 1], "path": [2, 2, 2]}'),
    ],
)
def test_names_of_values(file, text, tmp_path):
    classes = choose(tmp_path, (file, text))
    assert classes.names == ["background", "lawn", "path"] and classes.codes == [[0], [1], [2]]
    assert classes.source == str(tmp_path / file) and not classes.notes and not classes.ignored


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nlawn:120,180,80::\npath:190,170,140::\n",
        ),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\nlawn,120,180,80\npath,190,170,140\n"),
        ("label_colors.txt", "0 0 0\tbackground\n120 180 80\tlawn\n190 170 140\tpath\n"),
    ],
)
@pytest.mark.parametrize("kind", ["colors", "palette"])
def test_names_of_colors(file, text, kind, tmp_path):
    classes = choose(tmp_path, (file, text), **{kind: COLORS})
    assert classes.names == ["background", "lawn", "path"] and classes.colors == COLORS and not classes.notes
    assert classes.codes == ([[c] for c in COLORS] if kind == "colors" else [[0], [1], [2]])


def test_colors_without_names(tmp_path):
    classes = choose(tmp_path, colors=COLORS)
    assert classes.names == ["class_0", "class_1", "class_2"]
    assert sorted(classes.colors) == sorted(COLORS) and classes.codes == [[color] for color in classes.colors]
    assert "The colours have no names" in told(classes)


def test_colors_that_no_file_names_are_ignored_and_said(tmp_path):
    text = "background:0,0,0::\nlawn:120,180,80::\nshed:1,2,3::\n"
    classes = choose(tmp_path, ("labelmap.txt", text), colors=COLORS)
    assert classes.names == ["background", "lawn"] and classes.ignored == [COLORS[2]]
    assert "colour (190, 170, 140) (" in told(classes) and "No label map has a pixel of 'shed'" in told(classes)


def test_black_and_white_among_colors(tmp_path):
    """An empty label map in a set of colours has no colour."""
    paths = [write_label(tmp_path / "a.png", colors=COLORS), write_label(tmp_path / "b.png", values=(0, 0))]
    paths.append(write_label(tmp_path / "c.png", palette=COLORS))
    scan = scan_labels(paths)
    assert scan.is_color and set(scan.values) == set(COLORS) and scan.images[COLORS[0]] == 3


def test_grey_colors_are_values(tmp_path):
    scan = scan_labels([write_label(tmp_path / "a.png", colors=[(0, 0, 0), (1, 1, 1), (9, 9, 9)])])
    assert not scan.is_color and set(scan.values) == {0, 1, 9}


@pytest.mark.parametrize(
    ("values", "names", "expected", "note"),
    [
        ((1, 2, 3), "a b c", {"a": 1, "b": 2, "c": 3}, "start at 1"),
        ((0, 1, 2), "a b", {"background": 0, "a": 1, "b": 2}, "0, the most frequent, was taken for a background"),
        ((2, 1, 0), "a b", {"a": 0, "b": 1}, "2 for no class"),
        ((7, 8, 11), "a b c", {"a": 7, "b": 8, "c": 11}, "ascending order"),
        ((0, 127, 255), "a b c", {"a": 0, "b": 127, "c": 255}, "ascending order"),
        ((0, 1, 255), "a b", {"a": 0, "b": 1}, ""),
        ((0, 1, 2), "a b c d", {"a": 0, "b": 1, "c": 2, "d": 3}, "No label map has a pixel of 'd'"),
        ((0, 5, 9), "a b", {"class_0": 0, "class_1": 5, "class_2": 9}, "2 names for 3 label values"),
        ((0, 1, 2), "unlabeled a b", {"a": 1, "b": 2}, "'unlabeled' of"),
    ],
)
def test_names_in_order(values, names, expected, note, tmp_path):
    classes = choose(tmp_path, ("classes.txt", "\n".join(names.split())), values=values)
    assert dict(zip(classes.names, classes.codes)) == {name: [value] for name, value in expected.items()}
    assert note in told(classes) and bool(note) == bool(classes.notes)


def test_values_beside_the_named_ones_are_said(tmp_path):
    classes = choose(tmp_path, ("_classes.csv", "Pixel Value, Class\n0, a\n1, b\n"))
    assert classes.names == ["a", "b"] and classes.ignored == [2]
    assert "value 2 (" in told(classes) and "make it a class" in told(classes)


def test_files_that_differ_are_said(tmp_path):
    for folder, name in (("train", "cat"), ("valid", "dog")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "_classes.csv").write_text(f"Pixel Value, Class\n0, background\n2, {name}\n")
    paths = [write_label(tmp_path / "train/a.png", values=(0, 2))]
    classes = choose_classes(scan_labels(paths), [tmp_path / "train", tmp_path / "valid"])
    assert classes.names == ["background", "cat"] and "valid/_classes.csv names other classes" in told(classes)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("_classes.csv", "Pixel Value, Class\nzero, a\n", "cannot read names of classes"),
        ("labelmap.txt", "a:1,2::\n", "cannot read names of classes"),
        ("labelmap.txt", "just a line\n", "cannot read names of classes"),
        ("class_dict.csv", "name,r,g,b\na,1,2,300\n", "the colour 1, 2, 300 is not within 0 and 255"),
        ("classes.txt", "a\nb\na\n", "the class 'a' is there twice"),
        ("class_dict.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", r"the colour \(1, 2, 3\) is there twice"),
        ("_classes.csv", "Pixel Value, Class\n1, a\n1, b\n", "the value 1 is there twice"),
        ("_classes.csv", "Pixel Value, Class\n-1, a\n", "class 'a' has the value -1: expected 0 to 65535"),
        ("obj_class_to_machine_color.json", "[1]", "cannot read names of classes"),
        ("classes.txt", "\n", "expected names of classes, found none"),
    ],
)
def test_files_that_are_wrong(file, text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        choose(tmp_path, (file, text))
    assert str(tmp_path / file) in str(raised.value) and "\n" not in str(raised.value)


def test_label_maps_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="the label maps hold the value 3 and nothing else"):
        choose(tmp_path, values=(3, 3))
    photo = write_image(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="photo.jpg: .*JPEG"):
        scan_labels([photo])
    Image.merge("RGB", [Image.effect_noise((64, 64), s) for s in (40, 50, 60)]).save(tmp_path / "noise.png")
    with pytest.raises(ValueError, match="noise.png has .* different colours: expected a label map"):
        scan_labels([tmp_path / "noise.png"])
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    scan = scan_labels([write_label(tmp_path / "a.png"), tmp_path / "cut.png"])
    assert "cut.png" in scan.unreadable[tmp_path / "cut.png"] and len(scan.sizes) == 1


def test_palettes_that_differ_are_colors(tmp_path):
    """Each file numbers the colours that it has, as adaptive palettes do."""
    for i, colors in enumerate(([0, 1, 2], [0, 2], [2, 1, 0])):
        image = Image.fromarray(np.arange(12).reshape(3, 4).astype(np.uint8) % len(colors), "P")
        image.putpalette([part for c in colors for part in COLORS[c]])
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nlawn:120,180,80::\npath:190,170,140::\n")
    scan = scan_labels([tmp_path / f"{i}.png" for i in range(3)])
    assert scan.is_color and scan.values == {COLORS[0]: 4 + 6 + 4, COLORS[1]: 4 + 4, COLORS[2]: 4 + 6 + 4}
    assert "in the palette of" in scan.notes[0] and "1.png" in scan.notes[0]
    assert choose_classes(scan, [tmp_path]).codes == [[color] for color in COLORS]


def test_masks_of_1_and_of_8_bits(tmp_path):
    mask = np.arange(12).reshape(3, 4) % 2 == 1
    Image.fromarray(mask).save(tmp_path / "a.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "b.png")
    scan = scan_labels([tmp_path / "a.png", tmp_path / "b.png"])
    assert "White is 1 in" in scan.notes[0]
    classes = choose_classes(scan, [])
    assert classes.names == ["background", "foreground"] and classes.codes == [[(0, 0, 0)], [(255, 255, 255)]]


@pytest.mark.parametrize(
    ("values", "text", "codes"),
    [
        ((0, 255), "road:255,255,255::\nbackground:0,0,0::\n", {"road": [255], "background": [0]}),
        ((0, 128, 255), "c:255,255,255::\na:0,0,0::\nb:128,128,128::\n", {"c": [255], "a": [0], "b": [128]}),
        ((0, 1, 2), "c:2,2,2::\nb:1,1,1::\na:0,0,0::\n", {"c": [2], "b": [1], "a": [0]}),
        ((0, 1, 255), "b:1,1,1::\na:0,0,0::\n", {"b": [1], "a": [0]}),
        ((0, 1, 2), "a:0,0,0::\nb:9,0,0::\nc:0,9,0::\n", {"a": [0], "b": [1], "c": [2]}),  # by position
    ],
)
def test_greys_that_a_file_names(values, text, codes, tmp_path):
    classes = choose(tmp_path, ("labelmap.txt", text), values=values)
    assert dict(zip(classes.names, classes.codes)) == codes


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("_classes.csv", "0, background\n1, lawn\n2, path\n"),
        ("_classes.csv", "Pixel Value;Class\n0;background\n1;lawn\n2;path\n"),
        ("classes.txt", "id,name\n0,background\n1,lawn\n2,path\n"),
    ],
)
def test_with_and_without_header(file, text, tmp_path):
    classes = choose(tmp_path, (file, text))
    assert classes.names == ["background", "lawn", "path"] and classes.codes == [[0], [1], [2]] and not classes.ignored


def test_rare_values_without_names_are_said(tmp_path):
    label = np.zeros((100, 100), np.uint8)
    label[:50], label[0, 0] = 1, 7
    Image.fromarray(label).save(tmp_path / "a.png")
    classes = choose_classes(scan_labels([tmp_path / "a.png"]), [])
    assert classes.codes == [[0], [1], [7]] and "1 have less than 0.1% of the pixels each (value 7)" in told(classes)


def test_values_that_no_class_can_have_are_left_out(tmp_path):
    write_label(tmp_path / "a.png", 0)
    Image.fromarray(np.full((4, 5), 100_000, np.int32)).save(tmp_path / "b.tif")
    scan = scan_labels([tmp_path / "a.png", tmp_path / "b.tif"])
    assert scan.unreadable == {
        tmp_path / "b.tif": f"{tmp_path / 'b.tif'} has the value 100000: expected class ids from 0 to 65535"
    }

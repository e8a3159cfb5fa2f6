import pytest
from annotation_exports import write_image, write_label, write_pairs

from d2_contrast.own_data import find_layout
from d2_contrast.own_data.layout import Sample, hold_out, name_of

LAYOUTS = {  # where images and label maps are, and the folders to name
    "folders of one name": ("images/{}.jpg", "labels/{}.png", "images", "labels"),
    "below one folder": ("images/{}.jpg", "masks/{}.png", "", None),
    "suffix in one folder": ("{}.jpg", "{}_mask.png", "", None),
    "both png": ("bed-{}.png", "bed-{}-seg.png", "", None),
    "prefixes": ("img_{}.png", "mask_{}.png", "", None),
    "by type in one folder": ("bed {}.jpg", "bed {}.png", "", None),
    "type in the name": ("a/{}.jpg", "b/{}.jpg.png", "a", "b"),
    "subfolders": ("images/garden/bed/{}.jpg", "labels/garden/bed/{}.png", "images", "labels"),
    "label maps in one folder": ("images/garden/{}.jpg", "labels/{}.png", "images", "labels"),
    "words on both sides": ("x/{}_leftImg8bit.png", "y/{}_gtFine_labelIds.png", "x", "y"),
    "upper case": ("Images/IMG_{}.JPG", "Annotations/IMG_{}_Mask.PNG", "", None),
    "segmentation raw": ("JPEGImages/{}.jpg", "SegmentationClassRaw/{}.png", "", None),
    "labels within": ("{}.jpg", "labels/{}.png", "", "labels"),
    "voc": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "", None),
    "no words": ("fotos/{}.jpg", "karten/{}.png", "fotos", "karten"),
}


def found(layout):
    return [(sample.image, sample.label) for sample in layout.samples]


@pytest.mark.parametrize("name", LAYOUTS)
def test_pairs(name, tmp_path):
    image, label, images, labels = LAYOUTS[name]
    expected = sorted(write_pairs(tmp_path, image, label))
    layout = find_layout(tmp_path / images, None if labels is None else tmp_path / labels)
    assert found(layout) == expected and not layout.notes
    assert {sample.split for sample in layout.samples} == {""}


SPLITS = {
    "train/images": ("{split}/images/{{}}.jpg", "{split}/masks/{{}}.png"),
    "images/train": ("images/{split}/{{}}.jpg", "labels/{split}/{{}}.png"),
    "trainannot": ("{split}/{{}}.png", "{split}annot/{{}}.png"),
    "roboflow": ("{split}/bed_{{}}_jpg.rf.0a1b.jpg", "{split}/bed_{{}}_jpg.rf.0a1b_mask.png"),
    "train_images": ("{split}_images/{{}}.jpg", "{split}_masks/{{}}.png"),
    "imagesTrain": ("images_{split}/{{}}.jpg", "labels_{split}/{{}}.png"),
}


@pytest.mark.parametrize("words", [("train", "val", "test"), ("training", "valid", "Testing")])
@pytest.mark.parametrize("name", SPLITS)
def test_splits(name, words, tmp_path):
    """Files of all splits have the same names."""
    image, label = SPLITS[name]
    expected = []
    for split, word in zip(("train", "val", "test"), words):
        pairs = write_pairs(tmp_path, image.format(split=word), label.format(split=word), count=2)
        expected += [Sample(*pair, split) for pair in pairs]
    layout = find_layout(tmp_path)
    assert list(layout.samples) == sorted(expected, key=lambda sample: sample.image) and not layout.notes
    assert hold_out(layout.samples) == (list(layout.samples), None)


def test_lists_of_voc(tmp_path):
    pairs = write_pairs(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", count=6)
    write_pairs(tmp_path, "JPEGImages/{}.jpg", "SegmentationObject/{}.png", count=6)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n3\n1\n")
    (lists / "val.txt").write_text("2\n4\n")
    (lists / "trainval.txt").write_text("0\n1\n2\n3\n4\n")
    layout = find_layout(tmp_path)
    splits = ["train", "train", "val", "train", "val"]
    assert list(layout.samples) == [Sample(*pair, split) for pair, split in zip(pairs, splits)]
    told = " ".join(layout.notes)
    assert (
        "6 files left out, which are neither images nor label maps" in told
        and "1 image left out, which are in no list" in told
    )


@pytest.mark.parametrize(
    "line", ["{}.jpg", "s/{}", "./JPEGImages/s/{}.jpg", "/JPEGImages/s/{}.jpg /Labels/s/{}.png", "{} 1"]
)
def test_lines_of_lists(line, tmp_path):
    pairs = write_pairs(tmp_path, "JPEGImages/s/{}.jpg", "SegmentationClass/s/{}.png", count=3)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_text(f"{line.replace('{}', '0')}\n{line.replace('{}', '2')}\n")
    (tmp_path / "ImageSets/val.txt").write_text(f"{line.replace('{}', '1')}\n{line.replace('{}', '2')}\n")
    layout = find_layout(tmp_path)
    assert list(layout.samples) == [Sample(*pair, split) for pair, split in zip(pairs, ["train", "val", "train"])]
    assert "1 image counted in the first of two lists only" in " ".join(layout.notes)


def test_lists_of_names_that_are_not_utf8(tmp_path):
    pairs = write_pairs(tmp_path, "JPEGImages/gr\udcfcn{}.jpg", "SegmentationClass/gr\udcfcn{}.png", count=2)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_bytes(b"gr\xfcn0\n")
    (tmp_path / "ImageSets/val.txt").write_bytes(b"gr\xfcn1\n")
    samples = [Sample(*pair, split) for pair, split in zip(pairs, ["train", "val"])]
    assert list(find_layout(tmp_path).samples) == samples


def test_lists_tell_sequences_apart(tmp_path):
    for folder in ("s1", "s2"):
        write_pairs(tmp_path, f"JPEGImages/{folder}/{{}}.jpg", f"SegmentationClass/{folder}/{{}}.png", count=2)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_text("s1/0\ns1/1\n")
    (tmp_path / "ImageSets/val.txt").write_text("s2/0\n")
    found = {f"{s.image.parent.name}/{s.image.stem}": s.split for s in find_layout(tmp_path).samples}
    assert found == {"s1/0": "train", "s1/1": "train", "s2/0": "val"}
    (tmp_path / "ImageSets/val.txt").write_text("s3/0\n")
    layout = find_layout(tmp_path)
    assert "they were not used" in layout.notes[0] and {s.split for s in layout.samples} == {""}


def test_a_label_map_of_another_sequence_is_none(tmp_path):
    write_pairs(tmp_path, "images/a/{}.jpg", "masks/a/{}.png", count=2)
    expected = write_pairs(tmp_path, "images/b/{}.jpg", "masks/b/{}.png", count=1)
    write_image(tmp_path / "images/b/7.jpg")
    write_label(tmp_path / "masks/a/7.png", 0)
    layout = find_layout(tmp_path)
    assert len(layout.samples) == 3 and (layout.samples[2].image, layout.samples[2].label) == expected[0]
    assert "1 image without a label map left out" in " ".join(layout.notes)


def test_accents_of_macos(tmp_path):
    ((image, label),) = write_pairs(tmp_path, "images/b\u00e4 {}.jpg", "masks/ba\u0308 {}.png", count=1)
    assert [(s.image, s.label) for s in find_layout(tmp_path).samples] == [(image, label)]


def test_what_has_no_partner_is_said(tmp_path):
    pairs = write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png")
    write_image(tmp_path / "images/lonely.jpg")
    write_label(tmp_path / "labels/9.png")
    write_image(tmp_path / "images/.hidden.jpg")
    layout = find_layout(tmp_path / "images", tmp_path / "labels")
    assert found(layout) == pairs
    assert f"1 image without a label map left out, the first is {tmp_path}/images/lonely.jpg" in layout.notes
    assert f"1 label map without an image left out, the first is {tmp_path}/labels/9.png" in layout.notes


def test_a_test_split_without_labels_is_kept(tmp_path):
    write_pairs(tmp_path, "train/images/{}.jpg", "train/masks/{}.png")
    blind = write_image(tmp_path / "test/images/0.jpg")
    layout = find_layout(tmp_path)
    assert Sample(blind, None, "test") in layout.samples and len(layout.samples) == 6


def test_two_images_of_one_name_are_not_mixed_up(tmp_path):
    """Names alone do not tell whose label map it is."""
    for folder in ("a", "b"):
        write_image(tmp_path / f"images/{folder}/0.jpg")
    write_label(tmp_path / "labels/0.png")
    pairs = write_pairs(tmp_path, "images/c/{}.jpg", "labels/{}.png", start=1, count=3)
    layout = find_layout(tmp_path / "images", tmp_path / "labels")
    assert found(layout) == pairs and "2 images without a label map" in " ".join(layout.notes)


def test_what_lies_beside_is_left_out(tmp_path):
    """Pictures of the label maps, and images of something else."""
    pairs = write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    for folder in ("masks_color", "SegmentationClassVisualization", "instances", "depth"):
        write_pairs(tmp_path, folder + "/{}.png", folder + "/{}_x.png")
    layout = find_layout(tmp_path)
    assert found(layout) == pairs and "40 files left out" in " ".join(layout.notes)


@pytest.mark.parametrize(
    ("image", "label", "note"),
    [
        ("a/{}.png", "b/{}_L.png", "The names of label maps are those of their partners with '_L' after them"),
        (
            "a/x/{}.png",
            "b/x/gelb-{}.png",
            "The names of label maps are those of their partners with 'gelb-' before them",
        ),
        ("a/{}_sharp.jpg", "b/{}.png", "The names of images are those of their partners with '_sharp' after them"),
    ],
)
def test_any_text_that_tells_label_maps(image, label, note, tmp_path):
    """Numbers of different length, so that one name may be the start of another."""
    pairs = write_pairs(tmp_path, image, label, count=12)
    layout = find_layout(tmp_path / "a", tmp_path / "b")
    assert found(layout) == sorted(pairs) and list(layout.notes) == [note]


def test_several_label_maps_of_an_image(tmp_path):
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png")
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    with pytest.raises(
        ValueError, match="names do not tell which of these belong together: .*images/0.jpg, .*labels/0"
    ):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ([], ["nothing"], "nothing does not exist"),
        (["0.jpg", "1.jpg"], [""], "2 images, of which no name tells that it is a label map"),
        (["0.jpg", "1.jpg"], ["", "polygons"], "polygons has no label maps, .* it holds files of type .json: outlines"),
        (["labels/0.png"], [""], "has no images beside label maps"),
        (["images/a.jpg", "labels/b.png"], ["images", "labels"], "a.jpg and b.png are the first of both"),
        (
            ["images/a.jpg", "labels/task-1-annotation-2-by-1-tag-Car-0.png"],
            ["images", "labels"],
            "single brush stroke, as Label Studio",
        ),
    ],
)
def test_what_cannot_be_used(files, arguments, message, tmp_path):
    for file in files:
        write_image(tmp_path / file)
    (tmp_path / "polygons").mkdir()
    (tmp_path / "polygons/coco.json").write_text("{}")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_layout(*(tmp_path / argument for argument in arguments))


@pytest.mark.parametrize("count", [2, 4, 5, 6, 23, 100])
def test_held_out(count, tmp_path):
    samples = [Sample(tmp_path / f"{i:03}.jpg", tmp_path / f"{i}.png", "") for i in range(count)]
    split, told = hold_out(samples)
    assert [s.image for s in split] == [s.image for s in samples]
    held = [i for i, s in enumerate(split) if s.split == "val"]
    assert {s.split for s in split} == {"train", "val"} and f"{len(held)} of {count} images are held out" in told
    assert [i // 5 for i in held][: count // 5] == list(range(count // 5))  # one of each five
    assert hold_out(samples) == (split, told)
    if count == 100:
        assert hold_out(samples, seed=1)[0] != split


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Garden/images/train", "garden"),
        ("Garden/JPEGImages", "garden"),
        ("my beds/dataset/imgs", "my beds"),
        ("beds/train_images", "beds"),
        ("fotos", "fotos"),
    ],
)
def test_names(folder, name, tmp_path):
    assert name_of(tmp_path / folder) == name


def test_nothing_to_hold_out(tmp_path):
    with pytest.raises(ValueError, match="1 image with a label map to train on: expected two or more"):
        hold_out([Sample(tmp_path / "a.jpg", tmp_path / "a.png", "")])
    with pytest.raises(ValueError, match="none to train on"):
        hold_out([Sample(tmp_path / "a.jpg", tmp_path / "a.png", "val")])

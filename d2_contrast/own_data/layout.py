"""Which image belongs to which label map, and to which split, by the names of files and folders.

Known are folders for each kind (``images``, ``masks``), for each split (``train``, ``valid``) and for both
(``trainannot``, ``train/masks``); files told by a word in their name (``bed_mask.png``, ``mask_001.png``) or by their
type (``bed.jpg`` with ``bed.png``); and the lists of PASCAL VOC (``ImageSets/Segmentation/train.txt``).
"""

import os
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.datasets.register import IMAGE_SUFFIXES

SPLITS = {"train": "training|train|trn|tr", "val": "validation|valid|val|dev", "test": "testing|test|ts"}
KINDS = {
    "image": "jpegimages|images|image|imgs|img|photos|photo|pictures|frames|frame|rgb|leftimg8bit|inputs|input|sat",
    "label": "segmentationclass|segmentations|segmentation|semantic|masksmachine|masks|mask|labelmaps|labels|label|"
    "labelids|labeltrainids|annotations|annotation|annots|annot|anno|groundtruth|gtfine|gt|seg|targets|target",
    # What services export beside label maps: instances, and pictures to look at.
    "other": "segmentationobject|masksinstances|maskshuman|instances|instanceids|overlays|overlay|previews|preview",
}
_SPLIT = "|".join(f"(?P<{{0}}{name}>{words})" for name, words in SPLITS.items())
_KIND = "|".join(f"(?P<{name}>{words})" for name, words in KINDS.items())
# "SegmentationClassRaw" holds label maps, "masks_color" a picture of each.
_DRAWN = "(?P<drawn>colou?r(?:s|ed)?|vis|viz|visuali[sz](?:ed|ations?)|overlays?|previews?)"
_FOLDER = re.compile(
    f"(?:{_SPLIT.format('before_')})?(?:{_KIND})?(?:{_DRAWN}|raw|png|aug)?(?:{_SPLIT.format('after_')})?"
)
_WORDS = "|".join(KINDS.values())
_BEFORE = re.compile(rf"(?P<word>{_WORDS})(?:[_\-. ]+|(?=\d))", re.IGNORECASE)
_AFTER = re.compile(rf"[_\-. ]+(?P<word>{_WORDS})$", re.IGNORECASE)
_IMAGE_TYPE = re.compile(r"\.(jpe?g|png|tiff?|bmp|webp)$", re.IGNORECASE)
# A mask for each brush stroke, from which nothing leads to the name of the image.
_LABEL_STUDIO = re.compile(r"task-\d+-annotation-\d+-.*tag-")
SAYS_NOTHING = ("data", "dataset", "datasets", "export")
HOLD_OUT = 5  # one image in this many is held out
SEED = 0


@dataclass(frozen=True)
class Sample:
    """An image with its label map, if it has one, and its split: "train", "val", "test", or "" for none."""

    image: Path
    label: Path | None
    split: str


@dataclass(frozen=True)
class Layout:
    """What is in a folder.

    Attributes:
        samples: in the order of the images' paths.
        notes: what was left out or decided, a sentence each.
    """

    samples: Sequence[Sample]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _File:
    path: Path
    folders: tuple[str, ...]  # without those that only tell a kind or a split
    kind: str
    split: str
    stem: str  # without words that tell a kind
    stem_kind: str
    raw: tuple[str, ...]  # folders and stem as they are


def find_layout(images: Path, labels: Path | None = None) -> Layout:
    """Find images, their label maps and their splits.

    Args:
        images: folder of the images, subfolders count.
        labels: folder of the label maps; None or the same folder if it holds both.

    Raises:
        FileNotFoundError: a folder does not exist, or there are no images or no label maps in it.
        ValueError: no image has a label map by its name, or the files are an export that cannot be used.
    """
    notes: list[str] = []
    images = Path(os.path.abspath(images.expanduser()))
    labels = None if labels is None else Path(os.path.abspath(labels.expanduser()))
    image_files, label_files = _tell_apart(images, labels, notes)
    where = f"{images}" if labels is None else f"{images} and {labels}"
    if not label_files and labels is not None:
        types = sorted({path.suffix.lower() for path in labels.rglob("*.*") if path.is_file()})
        holds = f"files of type {', '.join(types)}" if types else "no files"
        hint = ""
        if {".json", ".xml", ".txt"} & set(types):
            hint = ": outlines and boxes (JSON, XML, TXT) have to be exported as masks"
        elif ".mat" in types:
            hint = ": describe MATLAB files in a config by hand"
        raise FileNotFoundError(
            f"{labels} has no label maps, which are images with a class for each pixel, such as PNG files; it holds "
            f"{holds}{hint}"
        )
    if not label_files:
        raise FileNotFoundError(
            f"{images} has {len(image_files)} images, of which no name tells that it is a label map: name the folder "
            "of the label maps after that of the images"
        )
    if not image_files:
        raise FileNotFoundError(f"{images} has no images beside label maps: name the folder of the images first")
    label_of = _pair(image_files, label_files)
    if not label_of:
        label_of = _pair_by_affix(image_files, label_files, notes)
    if several := _several(image_files, label_files, label_of):
        notes.append(several)
        if not label_of:
            raise ValueError(f"{several}: name the folders of the images and of the label maps that count")
    if not label_of:
        raise ValueError(
            f"no image in {where} has a label map by its name: {image_files[0].path.name} and "
            f"{label_files[0].path.name} are the first of both, expected names such as bed_01.jpg and bed_01.png or "
            "bed_01_mask.png"
        )
    samples = []
    for file in image_files:
        label = label_of.get(file.path)
        samples.append(Sample(file.path, label.path if label else None, file.split or (label.split if label else "")))
    used = {label.path for label in label_of.values()}
    if unused := [file.path for file in label_files if file.path not in used]:
        notes.append(f"{_counted(unused, 'label map')} without an image left out, the first is {unused[0]}")
    if not any(sample.split for sample in samples):
        samples = _split_by_lists(samples, [images, *([labels] if labels else [])], notes)
    return Layout(_leave_out_unlabelled(samples, notes), notes)


def hold_out(samples: Sequence[Sample], every: int = HOLD_OUT, seed: int = SEED) -> tuple[list[Sample], str | None]:
    """Give every sample a split: one of ``every`` that would be trained on is held out where there is no "val".

    Returns:
        The samples, and what was decided; None if the splits were there.

    Raises:
        ValueError: there are too few images for both.
    """
    samples = [sample if sample.split else replace(sample, split="train") for sample in samples]
    train = [i for i, sample in enumerate(samples) if sample.split == "train"]
    if any(sample.split == "val" for sample in samples):
        if not train:
            raise ValueError("there are images to validate on but none to train on: name the folder that holds both")
        return samples, None
    if len(train) < 2:
        raise ValueError(
            f"{_counted(train, 'image')} with a label map to train on: expected two or more, since one is held out to "
            "measure on"
        )
    choose = random.Random(seed)
    blocks = [train[i : i + every] for i in range(0, len(train), every)]
    # A last block that is not full gives one in proportion; the first always does.
    held = [choose.choice(b) for i, b in enumerate(blocks) if i == 0 or choose.random() < len(b) / every]
    for i in held:
        samples[i] = replace(samples[i], split="val")
    return samples, (
        f"{len(held)} of {len(train)} images are held out to measure on, one of {every} at random (seed {seed}). If "
        "neighbours are alike, such as frames of a video, hold out whole scenes instead: put them into a folder val"
    )


def name_of(images: Path) -> str:
    """What to call the data in a folder: the nearest folder that says more than that it holds images, in lower case."""
    names = [name for name in reversed(images.expanduser().resolve().parts[1:]) if not _match(name)]
    return next((name.lower() for name in names if name.lower() not in SAYS_NOTHING), "own")


def _match(folder: str) -> re.Match | None:
    """Whether the name of a folder only tells a kind or a split."""
    return _FOLDER.fullmatch(re.sub(r"[\W_]", "", folder.lower()))


def _tell_apart(images: Path, labels: Path | None, notes: list[str]) -> tuple[list[_File], list[_File]]:
    for folder in (images, labels or images):
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise FileNotFoundError(f"{folder} {what}: expected the folder of the images or of the label maps")
    if labels is None or labels == images:
        files = _list_files(images, lambda path: True)
        found = {kind: [f for f in files if _kind(f) == kind] for kind in KINDS}
        if any(f.kind == "image" for f in found["image"]):  # what lies elsewhere is something else, such as depth
            found["other"] += [f for f in found["image"] if f.kind != "image"]
            found["image"] = [f for f in found["image"] if f.kind == "image"]
        if not found["label"]:
            found["image"], found["label"] = _tell_by_type(found["image"])
        left_out = found["other"]
    else:
        nested = labels.is_relative_to(images)
        image_files = _list_files(images, lambda path: not (nested and path.is_relative_to(labels)))
        label_files = _list_files(labels, lambda path: nested or not path.is_relative_to(images))
        found = {
            "image": [f for f in image_files if f.kind not in ("label", "other")],
            "label": [f for f in label_files if "other" not in (f.kind, f.stem_kind)],
        }
        left_out = [f for f in image_files if f.kind in ("label", "other")]
        left_out += [f for f in label_files if "other" in (f.kind, f.stem_kind)]
    for file in found["label"]:
        if _LABEL_STUDIO.match(file.path.name):
            raise ValueError(
                f"{file.path} is a mask of a single brush stroke, as Label Studio exports them, whose image no name "
                "tells: export as COCO or YOLO and draw one label map for each image"
            )
    if left_out:
        notes.append(
            f"{_counted(left_out, 'file')} left out, which are neither images nor label maps by their names, the first "
            f"is {left_out[0].path}"
        )
    return found["image"], found["label"]


def _list_files(root: Path, wanted: Callable[[Path], bool]) -> list[_File]:
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return [_describe(path, root) for path in sorted(found) if path.suffix.lower() in IMAGE_SUFFIXES and wanted(path)]


def _describe(path: Path, root: Path) -> _File:
    kind = split = ""
    rest = []
    # macOS writes accents as letters of their own.
    *folders, name = (unicodedata.normalize("NFC", part) for part in path.relative_to(root).parts)
    for folder in folders:
        match = _match(folder)
        named = {key.rpartition("_")[2] for key, value in match.groupdict().items() if value} if match else set()
        if not named:
            rest.append(folder)
        if "drawn" in named:
            named = {"other"} if "label" in named else named - {"drawn"}
        for word in named:
            kind, split = (word, split) if word in KINDS else (kind, word)
    stem, stem_kind = Path(name).stem, ""
    raw = (*folders, stem)
    stem = _IMAGE_TYPE.sub("", stem)  # bed.jpg.png
    while match := _AFTER.search(stem) or _BEFORE.match(stem):
        if match.start() == 0 and match.end() == len(stem):
            break
        word = match["word"].lower()
        stem_kind = stem_kind or next(k for k, words in KINDS.items() if word in words.split("|"))
        stem = stem[: match.start()] + stem[match.end() :] if match.start() == 0 else stem[: match.start()]
    return _File(path, tuple(rest), kind, split, stem, stem_kind, raw)


def _kind(file: _File) -> str:
    """What a file is in a folder that holds images and label maps."""
    kinds = {file.kind, file.stem_kind}
    return next((kind for kind in ("other", "label") if kind in kinds), "image")


def _tell_by_type(files: Sequence[_File]) -> tuple[list[_File], list[_File]]:
    """Of a JPEG and another file of the same name, the other is the label map."""
    by_name: dict[tuple, list[_File]] = defaultdict(list)
    for file in files:
        by_name[file.raw].append(file)
    labels: dict[Path, _File] = {}
    for group in by_name.values():
        other = [file for file in group if file.path.suffix.lower() not in (".jpg", ".jpeg")]
        if len(group) == 2 and len(other) == 1:
            labels[other[0].path] = other[0]
    return [file for file in files if file.path not in labels], list(labels.values())


def _pair(images: Sequence[_File], labels: Sequence[_File]) -> dict[Path, _File]:
    """The label map of each image, by names that fit exactly, then by those that fit without words and folders."""
    keys: list[Callable[[_File], tuple]] = [
        lambda f: f.raw,
        lambda f: (f.split, f.folders, f.stem.lower()),
        lambda f: (f.split, f.stem.lower()),
        lambda f: (f.stem.lower(),),
    ]
    found: dict[Path, _File] = {}
    used: set[Path] = set()
    # A folder that both sides have tells more than a name: frames of two videos may share theirs.
    on_both_sides = ({f.folders for f in images} & {f.folders for f in labels}) - {()}
    for key in keys:
        waiting = _by_key((f for f in images if f.path not in found), key)
        free = _by_key((f for f in labels if f.path not in used), key)
        for name, group in waiting.items():
            candidates = free.get(name, [])
            if len(group) == len(candidates) == 1:
                image, label = group[0], candidates[0]
                if image.split and label.split and image.split != label.split:
                    continue
                if image.folders != label.folders and {image.folders, label.folders} & on_both_sides:
                    continue
                found[image.path] = label
                used.add(label.path)
    return found


def _pair_by_affix(images: Sequence[_File], labels: Sequence[_File], notes: list[str]) -> dict[Path, _File]:
    """Pairs by names of which one is the other with the same text before or after it, such as "_L"."""
    for longer, shorter in ((labels, images), (images, labels)):
        partner = {key: group[0] for key, group in _by_key(shorter, _place_and_stem).items() if len(group) == 1}
        pairs: dict[tuple[str, bool], list[tuple[_File, _File]]] = defaultdict(list)
        for file in longer:
            place, stem = file.folders, file.stem
            for cut in range(1, len(stem)):
                first, second = stem[:cut], stem[cut:]
                if second[0] in "_-. " and (place, first) in partner:
                    pairs[second, True].append((file, partner[place, first]))
                if first[-1] in "_-. " and (place, second) in partner:
                    pairs[first, False].append((file, partner[place, second]))
        if pairs:
            (affix, is_after), found = max(pairs.items(), key=lambda item: len(item[1]))
            if len(found) * 2 > len(longer):
                which, where = "label maps" if longer is labels else "images", "after" if is_after else "before"
                notes.append(f"The names of {which} are those of their partners with {affix!r} {where} them")
                return {(b if longer is labels else a).path: (a if longer is labels else b) for a, b in found}
    return {}


def _place_and_stem(file: _File) -> tuple:
    return file.folders, file.stem


def _several(images: Sequence[_File], labels: Sequence[_File], label_of: Mapping[Path, _File]) -> str | None:
    """Say where names alone do not tell which label map belongs to which image."""
    used = {label.path for label in label_of.values()}
    free = _by_key((f for f in labels if f.path not in used), lambda f: (f.stem.lower(),))
    waiting = _by_key((f for f in images if f.path not in label_of), lambda f: (f.stem.lower(),))
    for name, group in waiting.items():
        if name in free:
            files = [file.path for file in (*group, *free[name])]
            return f"names do not tell which of these belong together: {', '.join(map(str, files[:4]))}"
    return None


def _by_key(files: Iterable[_File], key: Callable[[_File], tuple]) -> dict[tuple, list[_File]]:
    groups: dict[tuple, list[_File]] = defaultdict(list)
    for file in files:
        groups[key(file)].append(file)
    return groups


def _split_by_lists(samples: Sequence[Sample], folders: Sequence[Path], notes: list[str]) -> list[Sample]:
    """Splits by the lists of PASCAL VOC beside the images, where there are some for training and validation."""
    by_end: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        parts = sample.image.with_suffix("").parts
        for i in range(1, len(parts)):
            by_end["/".join(parts[i:])].append(sample)
    for folder in (f for known in folders for f in (known, known.parent)):
        for lists in (folder / "ImageSets" / "Segmentation", folder / "ImageSets"):
            paths = {split: lists / f"{split}.txt" for split in SPLITS}
            if not (paths["train"].is_file() and paths["val"].is_file()):
                continue
            split_of: dict[Path, str] = {}
            twice: list[Path] = []
            for split, path in paths.items():
                lines = path.read_text("utf-8", "surrogateescape").splitlines() if path.is_file() else []
                for sample in (s for line in lines if line.strip() for s in _listed(line, by_end)):
                    if split_of.setdefault(sample.image, split) != split:
                        twice.append(sample.image)
            if not {"train", "val"} <= set(split_of.values()):
                notes.append(
                    f"The lists in {lists} name no images of this folder for train or for val: they were not used"
                )
                continue
            notes.append(f"The split is that of the lists in {lists}")
            if twice:
                notes.append(
                    f"{_counted(twice, 'image')} counted in the first of two lists only, the first is {twice[0]}"
                )
            if len(split_of) < len(samples):
                notes.append(f"{_counted(len(samples) - len(split_of), 'image')} left out, which are in no list")
            return [replace(s, split=split_of[s.image]) for s in samples if s.image in split_of]
    return list(samples)


def _listed(line: str, by_end: Mapping[str, list[Sample]]) -> list[Sample]:
    """The images of a line: a path from any folder on, with or without the type of the file; a label map may follow."""
    for name in (line.strip(), line.split()[0]):
        if found := by_end.get(_IMAGE_TYPE.sub("", name.lstrip("./"))):
            return found
    return []


def _leave_out_unlabelled(samples: Sequence[Sample], notes: list[str]) -> list[Sample]:
    """Leave out images without a label map, except in a test split where no image has one."""
    blind = not any(sample.label for sample in samples if sample.split == "test")
    kept, missing = [], []
    for sample in samples:
        if sample.label or (blind and sample.split == "test"):
            kept.append(sample)
        else:
            missing.append(sample.image)
    if missing:
        notes.append(f"{_counted(missing, 'image')} without a label map left out, the first is {missing[0]}")
    return kept


def _counted(things: Sequence | int, name: str) -> str:
    number = things if isinstance(things, int) else len(things)
    return f"{number} {name}{'s' * (number != 1)}"

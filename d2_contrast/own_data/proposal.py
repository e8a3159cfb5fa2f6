"""A config for somebody's own images and label maps, with what else it needs on disk."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image
from tqdm import tqdm

from ..data.datasets.folders import find, is_label_suffix
from ..data.files import color_of, upright_size
from ..output import write_text, write_whole
from .classes import Classes, choose_classes
from .labels import LabelScan, read_colors, scan_labels
from .layout import Sample, find_layout, hold_out

RECIPE = "camvid/uper_mobilenetv2_contrast_bs4_1600"
BATCH = 4
PASSES = 50  # over the training images
ITERATIONS = (1000, 40000)  # fewest and most
CROP = (64, 512)  # shortest and longest side, pixels
LARGE = 2048  # longer side in pixels from which images are predicted in windows

CONFIG = """\
# Proposed by `d2-contrast init`: read it, and change what you know better.
# A small UPerNet with the contrastive losses; {twin} is the same without.
_BASE_: {recipe}
MODEL:
  BACKBONE:
    PRETRAINED: True                     # on ImageNet; timm downloads the weights
  TIMM:
    NAME: "mobilenetv2_100.ra_in1k"      # any backbone of timm; larger: resnet50.a1_in1k, convnext_tiny.in12k_ft_in1k
  SEM_SEG_HEAD:
    NUM_CLASSES: {classes}{ignore_value}
DATASETS:
  FOLDERS:
{folders}
  TRAIN: ["{name}_train"]
  TEST: ["{name}_val"]{test}
INPUT:
  CROP:
    SIZE: {crop}                     # height and width; images have {size}
SOLVER:
  IMS_PER_BATCH: {batch}
  MAX_ITER: {iterations}                         # each of {images} training images is seen about {seen:.0f} times
  CHECKPOINT_PERIOD: {period}
TEST:
  EVAL_PERIOD: {period}{windows}
OUTPUT_DIR: "output/{name}"
"""


@dataclass(frozen=True)
class Proposal:
    """What was found in a folder, and what is proposed for it; :meth:`write` writes it to disk.

    Attributes:
        name: what names of datasets and files begin with.
        config: path and text of the config.
        lists: text of further files by their path: lists of images.
        label_maps: colour label maps by the path at which each is to be written with ids.
        classes: the classes.
        example: an image that is not trained on.
        summary: what was found, a line each.
        notes: what was decided and may be wrong, a sentence each.
    """

    name: str
    config: tuple[Path, str]
    lists: Mapping[Path, str]
    label_maps: Mapping[Path, Path]
    classes: Classes
    example: Path
    summary: Sequence[str]
    notes: Sequence[str] = field(default=())

    @property
    def files(self) -> list[Path]:
        """Every file that is written, the config first."""
        return [self.config[0], *self.lists, *self.label_maps]

    def write(self) -> None:
        """Write the files, with a progress bar on a terminal where label maps are among them."""
        codes = {code: i for i, those in enumerate(self.classes.codes) for code in those}
        palette = [part for color in self.classes.colors for part in color]
        for path, source in tqdm(self.label_maps.items(), unit="label map", disable=None, leave=False):
            packed, inverse = np.unique(read_colors(source), return_inverse=True)
            ids = np.array([codes.get(color_of(value), 255) for value in packed.tolist()], np.uint8)
            image = Image.fromarray(ids[inverse].reshape(inverse.shape), "L")
            image.putpalette(palette + [0] * (768 - len(palette)))
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as file:
                image.save(file, "PNG")
        for path, text in (*self.lists.items(), self.config):
            write_text(path, text)


def propose(images: Path, labels: Path | None, config: Path, name: str) -> Proposal:
    """Look at images and label maps, and propose classes, encoding, split and a config.

    Args:
        images: folder of the images.
        labels: folder of the label maps; None if it is the same.
        config: where the config is to be; what else is written lies beside it.
        name: what names of datasets begin with.

    Raises:
        FileNotFoundError, ValueError: there is nothing to train on, or a dataset of this name exists; the message says
            what was expected.
    """
    if f"{name}_train" in DatasetCatalog:
        raise ValueError(f"there is a dataset {name}_train in this project already: choose another name by --name")
    layout = find_layout(images, labels)
    notes = list(layout.notes)
    config = Path(os.path.abspath(config))
    scan = scan_labels([sample.label for sample in layout.samples if sample.label])
    samples, sizes = _usable(layout.samples, scan, notes)
    samples, decided = hold_out(samples)
    notes += [decided] if decided else []
    parts = {split: [s for s in samples if s.split == split] for split in ("train", "val", "test")}
    parts = {split: those for split, those in parts.items() if those}
    classes = choose_classes(scan, _folders_of(samples, images, labels))
    notes += (*scan.notes, *classes.notes)

    summary = [
        f"{len(samples)} images of {_size_text(sizes)}: {', '.join(f'{len(p)} {split}' for split, p in parts.items())}",
        f"Label maps hold {'colours' if scan.is_color else 'ids'}; classes by {classes.source}:",
        *(_class_line(i, classes, scan) for i in range(len(classes.names))),
        *([f"  -  ignored: {', '.join(map(str, classes.ignored))}"] if classes.ignored else []),
    ]

    label_maps: dict[Path, Path] = {}
    if scan.is_color:
        folder = config.with_name(f"{name}_labels")
        root = _common(sample.label for sample in samples if sample.label)
        moved = {s.label: folder / s.label.relative_to(root).with_suffix(".png") for s in samples if s.label}
        label_maps = {new: old for old, new in moved.items()}
        parts = {
            split: [Sample(s.image, moved[s.label] if s.label else None, split) for s in those]
            for split, those in parts.items()
        }
        summary.append(f"The label maps are written again with ids instead of colours, to {folder}")
    entries, lists = [], {}
    for split, those in parts.items():
        entry = {"name": f"{name}_{split}", "images": str(_common(s.image for s in those))}
        if those[0].label:
            entry |= {"labels": str(_common(s.label for s in those)), "label_suffix": _suffix(those)}
        if label_maps or not _finds(entry, those):
            list_file = config.with_name(f"{name}_{split}.txt")
            lists[list_file] = _list_text(entry, those)
            entry["files"] = str(list_file)
        entries.append(entry)
    text = _config_text(name, entries, classes, scan, sizes, len(parts["train"]))
    return Proposal(name, (config, text), lists, label_maps, classes, parts["val"][0].image, summary, notes)


def _folders_of(samples: Sequence[Sample], images: Path, labels: Path | None) -> list[Path]:
    """Where files with the names of classes may lie: with the label maps, above them, with the images, above them."""
    folders = list(dict.fromkeys(s.label.parent for s in samples if s.label))
    roots = [Path(os.path.abspath(root.expanduser())) for root in (labels or images, images)]
    above = [parent for root in roots for parent in (root, root.parent)]
    between = [parent for folder in folders for parent in folder.parents if any(r in parent.parents for r in roots)]
    return [*folders, *between, *above, *dict.fromkeys(s.image.parent for s in samples)]


def _usable(samples: Sequence[Sample], scan: LabelScan, notes: list[str]) -> tuple[list[Sample], np.ndarray]:
    """The samples whose files can be read and are of one size, and the heights and widths of their images, upright."""
    usable, sizes = [], []
    left_out = [f"of a label map that cannot be read ({reason})" for reason in scan.unreadable.values()]
    for sample in tqdm(samples, unit="image", disable=None, leave=False):
        if sample.label in scan.unreadable:
            continue
        try:
            with Image.open(sample.image) as image:
                height, width = upright_size(image)
        except Exception as error:  # Pillow's parsers let anything through
            left_out.append(f"that cannot be read ({sample.image}: {error})")
            continue
        if sample.label and scan.sizes[sample.label] != (height, width):
            label_size = " x ".join(map(str, scan.sizes[sample.label]))
            left_out.append(
                f"of a label map of another size ({sample.label} has {label_size} pixels, its image {height} x {width})"
            )
            continue
        usable.append(sample)
        sizes.append((height, width))
    if not usable:
        raise ValueError(f"none of the {len(samples)} images can be used; the first is an image {left_out[0]}")
    notes += [f"An image {reason} is left out" for reason in left_out[:3]]
    if len(left_out) > 3:
        notes.append(f"{len(left_out) - 3} more images are left out for such reasons")
    return usable, np.array(sizes)


def _size_text(sizes: np.ndarray) -> str:
    low, high = sizes.min(0), sizes.max(0)
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in zip(low.tolist(), high.tolist())]
    return f"{' x '.join(parts)} pixels (height x width)"


def _class_line(i: int, classes: Classes, scan: LabelScan) -> str:
    codes = classes.codes[i]
    share = sum(scan.values.get(code, 0) for code in codes) / sum(scan.values.values())
    return f"{i:3}  {classes.names[i]}: {', '.join(map(str, codes))} ({share:.2%} of all pixels)"


def _common(paths: Iterable[Path | None]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths if path]))


def _suffix(samples: Sequence[Sample]) -> str:
    """What follows the image's name in the label's, if it is the same for all and can be one; ".png" otherwise."""
    found = {s.label.name.removeprefix(s.image.stem) for s in samples if s.label}
    suffix = found.pop()
    return suffix if not found and suffix.startswith(("_", "-", ".", " ")) and is_label_suffix(suffix) else ".png"


def _finds(entry: Mapping, samples: Sequence[Sample]) -> bool:
    """Whether an entry of DATASETS.FOLDERS finds these samples, and no others, without a list."""
    try:
        return sorted(find(Path("/"), entry)) == sorted((s.image, s.label) for s in samples)
    except (OSError, ValueError):
        return False


def _list_text(entry: Mapping, samples: Sequence[Sample]) -> str:
    lines = []
    for sample in samples:
        line = str(sample.image.relative_to(entry["images"]))
        if sample.label:
            label = str(sample.label.relative_to(entry["labels"]))
            default = str(Path(line).with_suffix("")) + entry["label_suffix"]
            line += "" if label == default else f"\t{label}"
        lines.append(line + "\n")
    return "".join(lines)


def _config_text(
    name: str, entries: Sequence[Mapping], classes: Classes, scan: LabelScan, sizes: np.ndarray, images: int
) -> str:
    iterations = int(np.clip(-(-images * PASSES // BATCH // 100) * 100, *ITERATIONS))
    crop = [int(np.clip(side // 32 * 32, *CROP)) for side in np.median(sizes, axis=0).tolist()]
    windows = ""
    if sizes.max() > LARGE:
        stride = [side * 2 // 3 for side in crop]
        windows = (
            "\n  SLIDING_WINDOW:                        # for large images; INPUT.MIN_SIZE_* would shrink them instead"
            f"\n    ENABLED: True\n    SIZE: {crop}\n    STRIDE: {stride}"
        )
    many = len(classes.names) > 255
    test = f'                        # then ["{name}_test"], when all is decided' if len(entries) > 2 else ""
    return CONFIG.format(
        recipe=RECIPE,
        twin=RECIPE.replace("_contrast", ""),
        name=name,
        classes=len(classes.names),
        ignore_value="\n    IGNORE_VALUE: 65535" if many else "",
        folders=_folders_text(entries, classes, scan),
        test=test,
        crop=crop,
        size=_size_text(sizes).removesuffix(" (height x width)"),
        batch=BATCH,
        iterations=iterations,
        images=images,
        seen=iterations * BATCH / images,
        period=iterations // 5,
        windows=windows,
    )


def _folders_text(entries: Sequence[Mapping], classes: Classes, scan: LabelScan) -> str:
    """The entries as yaml; the classes stand in the first, the others refer to them."""
    ids_are_values = scan.is_color or [list(codes) for codes in classes.codes] == [
        [i] for i in range(len(classes.names))
    ]
    ignored = [255] if scan.is_color else list(classes.ignored)
    lines = []
    for i, entry in enumerate(entries):
        keys = [f"{key}: {_flow(value)}" for key, value in entry.items()]
        keys.append("classes: *classes" if i else "classes: &classes")
        lines.append(f"    - {keys[0]}")
        lines += [f"      {key}" for key in keys[1:]]
        if i == 0:
            for train_id, class_name in enumerate(classes.names):
                described: dict = {"name": class_name}
                if classes.colors:
                    described["color"] = list(classes.colors[train_id])
                if not ids_are_values:
                    described["values"] = list(classes.codes[train_id])
                lines.append(f"        - {_flow(described if len(described) > 1 else class_name)}")
        default = [65535] if len(classes.names) > 255 else [255]
        if not set(ignored) <= set(default) or (255 in {c for those in classes.codes for c in those} and not ignored):
            lines.append(f"      ignore_values: {ignored}")
    return "\n".join(lines)


def _flow(value: object) -> str:
    """A value in yaml, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")

"""Which classes the values or colours of label maps stand for, by the files with names that lie beside them."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.files import BLACK_AND_WHITE, Color, read_text
from ..data.metadata import MAX_ID, is_id
from .labels import MAX_VALUES, LabelScan, is_colorful

IGNORED = 255
RARE = 0.001  # a share of all pixels below which a value without a name may be an accident
BACKGROUND = re.compile(r"_?_?(background|bg|unlabell?ed|void|ignored?)_?_?", re.IGNORECASE)
UNLABELLED = re.compile(r"_?_?(unlabell?ed|void|ignored?)_?_?", re.IGNORECASE)


@dataclass(frozen=True)
class Named:
    """A class as a file names it, with the label value or the colour that it says, if any."""

    name: str
    value: int | None = None
    color: Color | None = None


@dataclass(frozen=True)
class Classes:
    """What label maps hold.

    Attributes:
        names: by train id.
        codes: the values or colours of each class in the files.
        ignored: values or colours of pixels that belong to no class.
        colors: to draw them with, by train id; () for colours that are chosen later.
        source: where the names are from.
        notes: what was decided that may be wrong, a sentence each.
    """

    names: Sequence[str]
    codes: Sequence[Sequence]
    ignored: Sequence
    colors: Sequence[Color]
    source: str
    notes: Sequence[str] = field(default=())


def choose_classes(scan: LabelScan, folders: Iterable[Path]) -> Classes:
    """Propose classes for what label maps hold.

    Args:
        scan: what they hold.
        folders: where files with names may be, the likeliest first.

    Raises:
        ValueError: fewer than two classes are left, or a file with names cannot be read.
    """
    notes: list[str] = []
    named, source = _find_names(folders, notes)
    chosen = _by_names(scan, named, source, notes) if named else None
    if chosen is None:
        chosen = _without_names(scan, notes)
    if scan.is_color and len(chosen.names) > MAX_VALUES:
        raise ValueError(
            f"the label maps hold {len(chosen.names)} colours in all: expected one for each class; more are left by "
            "smoothing, or stand for instances"
        )
    if len(chosen.names) < 2:
        found = ", ".join(map(_shown, scan.values))
        raise ValueError(
            f"the label maps hold the {found} and nothing else{' that is not ignored' if chosen.ignored else ''}: "
            "expected two classes or more, such as background and what is looked for"
        )
    return chosen


def read_class_file(path: Path) -> list[Named]:
    """Read a file with the names of classes, by its name: see READERS.

    Raises:
        ValueError: it has another content than its name says.
        FileNotFoundError: it does not exist.
    """
    try:
        found = READERS[path.name](read_text(path))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: cannot read names of classes from this file: {error}") from error
    if not found:
        raise ValueError(f"{path}: expected names of classes, found none: fill the file, or remove it")
    for what, those in (
        ("class", [entry.name for entry in found]),
        ("value", [entry.value for entry in found if entry.value is not None]),
        ("colour", [entry.color for entry in found if entry.color is not None]),
    ):
        if twice := [entry for entry, count in Counter(those).items() if count > 1]:
            raise ValueError(f"{path}: the {what} {twice[0]!r} is there twice: expected it once")
    if wrong := [entry for entry in found if entry.value is not None and not is_id(entry.value)]:
        raise ValueError(f"{path}: class {wrong[0].name!r} has the value {wrong[0].value}: expected 0 to {MAX_ID}")
    return found


def _roboflow(text: str) -> list[Named]:
    """_classes.csv: "Pixel Value, Class"."""
    return [Named(row[1], value=int(row[0])) for row in _rows(text, lambda row: _is_number(row[0]), "value, name")]


def _labelmap(text: str) -> list[Named]:
    """labelmap.txt of CVAT and Datumaro: "name:r,g,b:parts:actions"."""
    lines = [line.split(":") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Named(parts[0].strip(), color=_color(parts[1].split(","))) for parts in lines]


def _class_dict(text: str) -> list[Named]:
    """class_dict.csv: "name,r,g,b"."""
    rows = _rows(text, lambda row: all(map(_is_number, row[1:4])), "name, red, green, blue")
    return [Named(row[0], color=_color(row[1:4])) for row in rows]


def _label_colors(text: str) -> list[Named]:
    """label_colors.txt: "r g b name"."""
    rows = [line.split(None, 3) for line in text.splitlines() if line.strip()]
    return [Named(row[3].strip(), color=_color(row[:3])) for row in rows]


def _machine_colors(text: str) -> list[Named]:
    """obj_class_to_machine_color.json of Supervisely: {name: [v, v, v]}."""
    return [Named(name, value=int(color[0])) for name, color in json.loads(text).items()]


def _rows(text: str, is_row: Callable[[list[str]], bool], expected: str) -> list[list[str]]:
    """Rows of a table with commas or semicolons, without the header if there is one."""
    lines = [line for line in text.splitlines() if line.strip()]
    comma = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=comma)]
    width = expected.count(",") + 1
    for i, row in enumerate(rows):
        if len(row) < width or (i and not is_row(row)):
            raise ValueError(f"row {i + 1} is {lines[i]!r}: expected {expected}")
    return rows if not rows or is_row(rows[0]) else rows[1:]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None


def _lines(text: str) -> list[Named]:
    """A name a line, maybe after its value: "3: road"; then the first line may be a header."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    numbered = [re.fullmatch(r"(\d+)\s*[:,;\t ]\s*(.+)", line) for line in lines]
    if len(lines) > 2 and all(numbered[1:]):
        numbered = numbered if numbered[0] else numbered[1:]
    if numbered and all(numbered):
        return [Named(match[2], value=int(match[1])) for match in numbered if match]
    return [Named(line) for line in lines]


READERS = {
    "_classes.csv": _roboflow,
    "labelmap.txt": _labelmap,
    "class_dict.csv": _class_dict,
    "label_colors.txt": _label_colors,
    "obj_class_to_machine_color.json": _machine_colors,
    "classes.txt": _lines,
    "labels.txt": _lines,
}


def _color(parts: Sequence[str]) -> Color:
    red, green, blue = (int(part) for part in parts)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"the colour {red}, {green}, {blue} is not within 0 and 255")
    return red, green, blue


def _find_names(folders: Iterable[Path], notes: list[str]) -> tuple[list[Named], str]:
    found: dict[Path, list[Named]] = {}
    for folder in dict.fromkeys(folders):
        for name in READERS:
            if (folder / name).is_file():
                found[folder / name] = read_class_file(folder / name)
    if not found:
        return [], ""
    path, named = next(iter(found.items()))
    if different := next((p for p, others in found.items() if p.name == path.name and others != named), None):
        notes.append(f"{different} names other classes than {path}, which was taken")
    return named, str(path)


def _by_names(scan: LabelScan, named: Sequence[Named], source: str, notes: list[str]) -> Classes | None:
    """Classes by a file; None if its names cannot be brought together with what the label maps hold."""
    codes: dict[str, list] = {}
    if scan.is_color and not named[0].color:
        notes.append(f"{source} has names but no colours, while the label maps hold colours: it was not used")
        return None
    by_color = _values_of_colors(scan, named) if named[0].color else None
    if by_color is not None:
        codes = {entry.name: by_color.get(entry.color, []) for entry in named}
    elif named[0].value is not None:
        codes = {entry.name: [entry.value] for entry in named}
    else:
        codes = _by_position(scan, [entry.name for entry in named], source, notes)
        if not codes:
            return None
    known = {code for those in codes.values() for code in those}
    strange = [value for value in scan.values if value not in known]
    if strange and len(strange) == len(scan.values):
        notes.append(f"Nothing that the label maps hold is in {source}: it was not used")
        return None
    ignored = list(strange)
    explained = (IGNORED, len(named)) if named[0].value is None else (IGNORED,)  # the second by _by_position
    if loud := [value for value in strange if value not in explained]:
        notes.append(
            f"{_listed(loud)} ({_share(scan, loud)} of all pixels) is not in {source} and is ignored: make it a class "
            "if it is one"
        )
    colors = [entry.color for entry in named]
    for name in list(codes):
        if UNLABELLED.fullmatch(name):
            notes.append(f"{name!r} of {source} is ignored by its name: make it a class if it is one")
            colors.pop(list(codes).index(name))
            ignored += codes.pop(name)
    if empty := [name for name, those in codes.items() if not any(code in scan.values for code in those)]:
        notes.append(f"No label map has a pixel of {', '.join(map(repr, empty))}, which {source} names")
        if by_color is not None:  # without a code that a file could have
            colors = [color for color, those in zip(colors, codes.values()) if those]
            codes = {name: those for name, those in codes.items() if those}
    return Classes(
        list(codes),
        list(codes.values()),
        ignored,
        [color for color in colors if color] if all(colors) else (),
        source,
        notes,
    )


def _values_of_colors(scan: LabelScan, named: Sequence[Named]) -> dict[Color | None, list] | None:
    """What label maps hold for each colour that a file names; None if they hold ids that these colours do not tell.

    Without a palette an id may be the grey of its value, if a file names that grey.
    """
    greys = {value: (value,) * 3 for value in scan.values}
    shown: dict = dict(zip(scan.values, scan.values)) if scan.is_color else greys | scan.palette
    colors = {entry.color for entry in named}
    strange = [value for value in scan.values if shown[value] not in colors]
    explained = not strange or (strange == [IGNORED] and len(scan.values) > 2)
    if not (scan.is_color or is_colorful(scan.palette) or explained):
        return None
    return {color: [value for value in scan.values if shown[value] == color] for color in colors}


def _by_position(scan: LabelScan, names: Sequence[str], source: str, notes: list[str]) -> dict[str, list]:
    """Label values of names of which a file only says the order."""
    if set(scan.values) == {0, IGNORED} and len(names) <= 2:
        return dict(zip(["background", *names][-2:], ([0], [IGNORED])))
    values = [value for value in scan.values if value != IGNORED or IGNORED < len(names)]
    if max(values, default=0) < len(names):
        return {name: [i] for i, name in enumerate(names)}
    if max(values) == len(names):
        first, last = repr(names[0]), len(names)
        from_one = {name: [i] for i, name in enumerate(names, 1)}
        if 0 not in scan.values:
            notes.append(f"The label values start at 1, so 1 was taken for {first}, the first of {source}")
            return from_one
        what = f"The label values go from 0 to {last} for the {last} names in {source}"
        if scan.values[0] == max(scan.values.values()) and not BACKGROUND.fullmatch(names[0]):
            notes.append(
                f"{what}: 0, the most frequent, was taken for a background and 1 for {first}; if 0 is {first} and "
                f"{last} stands for no class, take the background out and count from 0"
            )
            return {"background": [0], **from_one}
        notes.append(
            f"{what}: 0 was taken for {first} and {last} for no class; if 0 is a background and 1 is {first}, put the "
            "background before the names"
        )
        return {name: [i] for i, name in enumerate(names)}
    values = next((those for those in (values, list(scan.values)) if len(those) == len(names)), values)
    if len(values) == len(names):
        notes.append(f"The label values in ascending order were taken for the names in {source}: check that they fit")
        return {name: [value] for name, value in zip(names, values)}
    notes.append(f"{source} has {len(names)} names for {len(values)} label values ({_listed(values)}): it was not used")
    return {}


def _without_names(scan: LabelScan, notes: list[str]) -> Classes:
    values = list(scan.values)
    if set(values) in ({0, 255}, {0, 1}, set(BLACK_AND_WHITE.values())):
        first, second = values
        notes.append(f"The label values are {first} and {second}: {first} was taken for the background")
        return Classes(["background", "foreground"], [[first], [second]], [], (), "the two label values", notes)
    ignored = [value for value in values if value == IGNORED]
    if ignored and len(values) > 1:
        notes.append(f"255 ({_share(scan, ignored)} of all pixels) was taken for pixels of no class, which are ignored")
    classes = [value for value in values if value not in ignored]
    if scan.is_color:
        classes.sort(key=lambda color: -scan.values[color])  # type: ignore[index]
        notes.append("The colours have no names; class_0 is the most frequent one: rename the classes in the config")
    if len(classes) > 50:
        notes.append(f"{len(classes)} values are many for classes: are they instances?")
    least = RARE * sum(scan.values.values())
    if rare := [value for value in classes if scan.values[value] < least]:
        what = "colours" if scan.is_color else "values"
        notes.append(
            f"Of {len(classes)} {what} {len(rare)} have less than {RARE:.1%} of the pixels each "
            f"({_listed(rare)}): if smoothing or compression left them, they are no classes"
        )
    colors: Sequence = classes if scan.is_color else ()
    if is_colorful(scan.palette) and all(value in scan.palette for value in classes):
        colors = [scan.palette[value] for value in classes]
    names = [f"class_{i}" for i in range(len(classes))]
    return Classes(names, [[value] for value in classes], ignored, colors, "the label values, without names", notes)


def _share(scan: LabelScan, values: Sequence) -> str:
    return f"{sum(scan.values[value] for value in values) / sum(scan.values.values()):.1%}"


def _listed(values: Sequence) -> str:
    return ", ".join(map(_shown, values[:8])) + ", ..." * (len(values) > 8)


def _shown(value: object) -> str:
    return f"colour {value}" if isinstance(value, tuple) else f"value {value}"

"""A comparison of runs as one HTML file that needs nothing else: no network, no file beside it.

What the page shows are the figures of :func:`~.comparison.comparison_json` and pictures. Names are text: the template
escapes them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from .. import __version__
from ..data import class_colors, get_ignore_label
from ..evaluation.calibration import BINS
from ..evaluation.features import NEIGHBOURS
from ..output import write_text
from ..tables import number
from ..visualize import draw_calibration, draw_confusion, draw_curves, draw_shared_curves
from ..visualize.style import farthest_color, rgb
from . import page_pictures as pictures
from .comparison import CAPTIONS, Comparison, SeenImage, comparison_json, differences, overall_metrics, title
from .features import NOTES, sampled_positions, tables

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        swatch: a colour before the text, as in CSS.
        bar: from 0 to 1, how far a bar fills it, or from -1 to 1 for a bar that starts in its middle.
        signed: which of the two bars it is.
    """

    text: str
    swatch: str | None = None
    bar: float | None = None
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a page: the first ``texts`` columns are text, the others numbers."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1


def write_page(comparison: Comparison, files: Sequence[Path], path: Path) -> Path:
    """Write a comparison as a page, and return its path.

    Args:
        comparison: what to show.
        files: what :func:`~.comparison.write_comparison` wrote; the page holds its pictures.
        path: of the page.
    """
    metadata = MetadataCatalog.get(comparison.features.dataset)
    data = comparison_json(comparison)
    drawn = {file.stem: file for file in files if file.suffix == ".png"}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colors = class_colors(metadata)
    page = environment.get_template(TEMPLATE).render(
        title=title(comparison),
        version=__version__,
        names=comparison.names,
        data=data,
        swatches={name: rgb(color) for name, color in zip(metadata.stuff_classes, colors)},
        tables=_tables(comparison, data, metadata),
        figures=_figures(comparison, metadata, drawn),
        captions=CAPTIONS,
        images=_images(comparison, metadata),
        logged=bool(comparison.logs),
        sampled=sampled_positions(comparison.features),
        notes=NOTES,
        bins=BINS,
        number=number,
        wrong_color=rgb(farthest_color(colors)),
        shades=[rgb(color) for color in pictures.SHADES[::4]],
        stripes=[rgb(color) for color in pictures.STRIPES],
    )
    write_text(path, page)
    return path


def _tables(comparison: Comparison, data: Mapping, metadata: Metadata) -> dict[str, Table]:
    """All tables, by name; without those that would be empty."""
    names = comparison.names
    headers = [*names, *differences(names)]
    groups = {f"mIoU-{group}": classes for group, classes in metadata.get("class_groups", {}).items()}
    results = {key: [data["results"][name][key] for name in names] for key in data["results"][names[0]]}
    scores = [[Cell(f"{key} (%)"), *_numbers(results[key])] for key in overall_metrics(comparison) if key not in groups]
    if len(data["calibration"]) == len(names):
        scores.append([Cell("ECE (%) ↓"), *_numbers([data["calibration"][name]["ECE"] for name in names])])
    for scale, stride in data["features"]["strides"].items():
        maps = [data["features"]["runs"][name]["raw"]["maps"][scale] for name in names]
        label = f"{scale} (stride {stride}): accuracy of {NEIGHBOURS} nearest neighbours"
        scores.append([Cell(label), *_numbers([values["neighbour_accuracy"] for values in maps])])
    found = {
        "scores": Table("Scores; ↓: smaller is better", ["score", *headers], scores),
        "settings": _settings_table(names, data),
        "classes": _classes_table(names, data, class_colors(metadata)),
        "groups": Table(
            "Mean IoU of groups of classes (%)",
            ["group", "classes", *headers],
            [
                [Cell(key.removeprefix("mIoU-")), Cell(", ".join(classes)), *_numbers(results[key])]
                for key, classes in groups.items()
                if key in results
            ],
            texts=2,
        ),
        "confused": Table(
            "Most confused: share of a class's pixels that is taken for another (%)",
            ["class", "taken for", *headers],
            [
                [Cell(pair["label"]), Cell(pair["predicted"]), *_numbers([pair["shares"][name] for name in names])]
                for pair in data["confused"]
            ],
            texts=2,
        ),
        "anchors": _anchors_table(data),
        "calibration": _calibration_table(data),
    }
    for name, (columns, rows) in zip(("maps", "scales"), tables(comparison.features)):
        caption = {"maps": "Single feature maps", "scales": "Two scales together"}[name]
        found[name] = Table(caption, columns, [[Cell(text) for text in row] for row in rows], texts=2)
    return {name: table for name, table in found.items() if table.rows}


def _settings_table(names: Sequence[str], data: Mapping) -> Table:
    alone = len(names) == 1
    caption = "Settings that differ from the defaults" if alone else "Settings that differ"
    rows = [[Cell(key), *(Cell(str(value)) for value in values)] for key, values in data["settings"].items()]
    return Table(caption, ["key", *(["default"] if alone else []), *names], rows, texts=len(names) + 2)


def _classes_table(names: Sequence[str], data: Mapping, colors: np.ndarray) -> Table:
    """Classes by gain, the largest first; of a single run by IoU, the smallest first."""
    alone = len(names) == 1
    gains = [of_run[f"IoU-{name}"] for of_run in data["differences"].values() for name in data["pixels"]]
    largest = max((abs(gain) for gain in gains if not math.isnan(gain)), default=0)

    def place(entry: tuple[str, str]) -> tuple[bool, float]:
        key = f"IoU-{entry[0]}"
        value = data["results"][names[0]][key] if alone else -data["differences"][names[-1]][key]
        return math.isnan(value), value

    swatches = {name: rgb(color) for name, color in zip(data["pixels"], colors)}
    rows = []
    for name, swatch in sorted(swatches.items(), key=place):
        values = [data["results"][run][f"IoU-{name}"] for run in names]
        gains = [data["differences"][run][f"IoU-{name}"] for run in names[1:]]
        rows.append(
            [
                Cell(name, swatch=swatch),
                *(Cell(number(value), bar=_share(value, 100)) for value in values),
                *(Cell(number(gain, sign=True), bar=_share(gain, largest), signed=True) for gain in gains),
                Cell(number(data["pixels"][name])),
            ]
        )
    caption = "IoU of each class (%), the smallest first"
    if not alone:
        caption = f"IoU of each class (%), the largest gain of {names[-1]} first"
    return Table(caption, ["class", *names, *differences(names), "pixels (%)"], rows)


def _anchors_table(data: Mapping) -> Table:
    statistics = {
        "num_anchors": "anchors in a batch",
        "num_classes": "classes in a batch",
        "positive_similarity": "mean cosine, same class",
        "negative_similarity": "mean cosine, different classes",
    }
    rows = [
        [Cell(name), Cell(scale), *(Cell(number(values.get(key, math.nan))) for key in statistics)]
        for name, scales in data["anchors"].items()
        for scale, values in scales.items()
    ]
    return Table("Anchors of each scale at the end of training", ["run", "scale", *statistics.values()], rows, texts=2)


def _calibration_table(data: Mapping) -> Table:
    rows = []
    for name, values in data["calibration"].items():
        total = max(sum(values["pixels"]), 1)
        for i, pixels in enumerate(values["pixels"]):
            probability = f"{number(i / BINS)} to {number((i + 1) / BINS)}"
            shares = 100 * pixels / total, 100 * values["confidence"][i], 100 * values["accuracy"][i]
            rows.append([Cell(name), Cell(probability), *(Cell(number(share)) for share in shares)])
    headers = ["run", "probability of the predicted class", "pixels (%)", "mean probability (%)", "right (%)"]
    return Table("Pixels by the probability of their predicted class", headers, rows, texts=2)


def _figures(comparison: Comparison, metadata: Metadata, drawn: Mapping[str, Path]) -> dict[str, str]:
    """Data URIs of figures, by name."""
    found = {name: pictures.drawn(Image.open(file)) for name, file in drawn.items() if name != "predictions"}
    if len(comparison.logs) > 1 and (shared := draw_shared_curves(comparison.logs)):
        found["shared curves"] = pictures.drawn(shared)
    for name, metrics in comparison.logs.items():
        found[f"curves {name}"] = pictures.drawn(draw_curves(metrics))
    for name, confusion in comparison.confusions.items():
        figure = draw_confusion(confusion, metadata.stuff_classes, get_ignore_label(metadata))
        found[f"confusion {name}"] = pictures.drawn(figure)
    if comparison.calibrations:
        found["calibration"] = pictures.drawn(draw_calibration(comparison.calibrations))
    return pictures.embed(found, pictures.FIGURE_SIDE, pictures.FIGURE_BYTES)


def _images(comparison: Comparison, metadata: Metadata) -> dict[str, list[dict]]:
    """The images to show, by what they are chosen for: what is said of each, and its panels."""
    found: dict[str, pictures.Encoder] = {}
    shown = {"changed": comparison.changed, "worst": comparison.worst}
    described = {
        kind: [_describe(image, metadata, found) for image in images] for kind, images in shown.items() if images
    }
    uris = pictures.embed(found, pictures.PHOTO_SIDE, pictures.PHOTO_BYTES)
    for images in described.values():
        for image in images:
            for panel in image["panels"]:
                panel["uri"] = uris[panel["key"]]
    return described


def _describe(image: SeenImage, metadata: Metadata, found: dict[str, pictures.Encoder]) -> dict:
    """What a page says of an image; its pictures are added to ``found``, unless they are there already."""
    file, names, colors = image.dataset_dict["file_name"], metadata.stuff_classes, class_colors(metadata)
    sample = image.sample(metadata)
    counted = sample.label != get_ignore_label(metadata)
    wrong = {name: f"{number(100 * share, 1)} %" for name, share in image.wrong.items()}
    panels = [
        ("image", "", "image", pictures.photo(sample.image)),
        ("label", "", "label", pictures.class_map(sample.label, counted, colors)),
    ]
    for run, classes in image.predictions.items():
        panels.append(("prediction", run, f"prediction of {run}", pictures.class_map(classes, counted, colors)))
        errors = pictures.error_map(classes, sample.label, counted, farthest_color(colors))
        panels.append(("errors", run, f"errors of {run}: {wrong[run]} of the labelled pixels", errors))
        if run in image.entropies:
            entropy = pictures.entropy_map(image.entropies[run], counted)
            panels.append(("entropy", run, f"entropy of {run}", entropy))
    stem = Path(file).stem
    keys = [f"{file} {what} {run}" for what, run, _, _ in panels]
    for key, (*_, encoder) in zip(keys, panels):
        found.setdefault(key, encoder)
    seen = [sample.label, *image.predictions.values()]
    return {
        "name": stem,
        "wrong": wrong,
        "changed": f"{number(100 * image.changed, 1)} %",
        "classes": [names[i] for i in np.unique(np.concatenate([classes[counted] for classes in seen])).astype(int)],
        "panels": [
            {"key": key, "what": what, "run": run, "alt": f"{stem}: {says}"}
            for key, (what, run, says, _) in zip(keys, panels)
        ],
    }


def _numbers(values: Sequence[float]) -> list[Cell]:
    """The values of all runs and the differences to the first."""
    first, *others = values
    gains = [Cell(number(value - first, sign=True)) for value in others]
    return [*(Cell(number(value)) for value in values), *gains]


def _share(value: float, largest: float) -> float | None:
    return value / largest if largest and not math.isnan(value) else None

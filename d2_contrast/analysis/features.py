"""Measures and pictures of the features of trained runs, side by side."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..data import class_colors
from ..evaluation import LabelledVectors, balance, sample_features
from ..evaluation.features import NEIGHBOURS, SHOTS, measure_map, measure_scales
from ..modeling.features import contrasted_features, join_shapes, part_names
from ..output import write_text
from ..tables import markdown_table, number, write_json
from ..visualize import draw_embeddings, draw_joint_embeddings
from ..visualize.report import spread
from ..visualize.style import save
from .runs import TrainedRun

logger = logging.getLogger(__name__)

# At most this many images are measured, evenly spread over the dataset.
MAX_IMAGES = 200

# Measures of a map, and of two maps together, with their names in tables.
MAP_MEASURES = {
    "neighbour_accuracy": f"accuracy of {NEIGHBOURS} nearest neighbours ↑",
    "probe_accuracy": "accuracy of a linear probe ↑",
    **{f"few_shot_accuracy_{n}": f"accuracy of a probe from {n} image{'s' * (n > 1)} ↑" for n in SHOTS},
    "alignment": "alignment ↓",
    "uniformity": "uniformity ↓",
    "distance_ratio": "distance within / between classes ↓",
}
SCALE_MEASURES = {
    "similarity_gap": "similarity of a class across scales ↑",
    "neighbour_accuracy": f"accuracy of {NEIGHBOURS} nearest neighbours on the finer map ↑",
}
NO_MAPS = "Features are not measured: no map that is contrasted has the same name and stride in all of these networks."
NOTES = """\
↑: larger is better; ↓: smaller is better; -: cannot be measured on these images. Accuracies are shares of 1, the
mean over classes; ± is the standard deviation over draws of the labelled images."""


@dataclass(frozen=True)
class FeatureAnalysis:
    """Features of runs at the same positions of the same images.

    Attributes:
        dataset: name of the dataset.
        strides: of the maps, by name; {} where the networks have none in common, which leaves the others empty.
        raw: vectors of the maps themselves, by run and map.
        projected: vectors after the projectors, by run and map, for runs that have projectors.
        measures: all figures, see :func:`measures_of`, by run.
    """

    dataset: str
    strides: Mapping[str, int]
    raw: Mapping[str, Mapping[str, LabelledVectors]]
    projected: Mapping[str, Mapping[str, LabelledVectors]]
    measures: Mapping[str, Mapping[str, Mapping]]


def analyze_features(
    runs: Sequence[TrainedRun], dataset: str, dataset_dicts: Sequence[dict], maps: Sequence[str] | None = None
) -> FeatureAnalysis:
    """Measure the features of runs.

    Args:
        runs: at least one.
        dataset: a registered dataset.
        dataset_dicts: its labelled images, at least one. At most MAX_IMAGES of them are used.
        maps: see :func:`common_maps`.

    Raises:
        ValueError: a network has no such map, maps of a name differ in stride, there is none in common, or maps hold
            values that are not finite.
    """
    strides = common_maps(runs, maps)
    if not strides:
        shapes = {run.name: run.model.backbone.output_shape() for run in runs}
        listed = "; ".join(
            f"{run}: {', '.join(f'{name} (stride {shape.stride})' for name, shape in of_run.items())}"
            for run, of_run in shapes.items()
        )
        raise ValueError(f"these networks have no feature map in common that is contrasted ({listed})")
    metadata = MetadataCatalog.get(dataset)
    raw, projected, measures = {}, {}, {}
    for run in runs:
        logger.info("%s: reading features of %d images", run.name, min(MAX_IMAGES, len(dataset_dicts)))
        try:
            images = tqdm(spread(dataset_dicts, MAX_IMAGES), unit="image", disable=None, leave=False)
            vectors = sample_features(run.model, run.mapper_for(dataset), images, metadata, list(strides))
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
        raw[run.name], projected[run.name] = vectors
        for name in strides:
            _check_same_positions(raw[runs[0].name][name], raw[run.name][name], name, runs[0], run)
        logger.info("%s: measuring", run.name)
        measures[run.name] = {stage: measures_of(maps) for stage, maps in zip(("raw", "projected"), vectors) if maps}
    return FeatureAnalysis(dataset, strides, raw, {k: v for k, v in projected.items() if v}, measures)


def measures_of(maps: Mapping[str, LabelledVectors]) -> dict[str, dict]:
    """All measures of maps.

    Returns:
        "maps", :func:`measure_map` by name, and "scales", :func:`measure_scales` by the names of both maps ("p2 p3").
    """
    return {
        "maps": {
            name: measure_map(points) for name, points in tqdm(maps.items(), unit="map", disable=None, leave=False)
        },
        "scales": {" ".join(pair): values for pair, values in measure_scales(maps).items()},
    }


def common_maps(runs: Sequence[TrainedRun], maps: Sequence[str] | None = None) -> dict[str, int]:
    """The feature maps on which runs are compared, with their strides, fine to coarse.

    Args:
        runs: at least one.
        maps: names, "a+b" for two maps that are concatenated. None: the maps that a run with contrastive losses
            contrasts, or, if no run has these losses, the maps that they would contrast; maps that a network lacks, or
            has at another stride, are left out.

    Returns:
        {} if ``maps`` is None and none is left.

    Raises:
        ValueError: a network has no such map of ``maps``, or maps of a name differ in stride.
    """
    shapes = {run.name: run.model.backbone.output_shape() for run in runs}
    if maps is None:
        telling = [run for run in runs if run.cfg.MODEL.CONTRAST.ENABLED] or runs
        wanted = dict.fromkeys(name for run in telling for name in contrasted_features(run.cfg, shapes[run.name]))
        shared = [name for name in wanted if all(set(part_names([name])) <= set(shapes[run.name]) for run in runs)]
        joined = [join_shapes(shapes[run.name], shared, "--maps") for run in runs] if shared else []
        maps = [name for name in shared if len({of_run[name].stride for of_run in joined}) == 1]
        if not maps:
            return {}
    strides: dict[str, int] = {}
    for run in runs:
        for name in part_names(maps):
            if name not in shapes[run.name]:
                raise ValueError(f"{run.name} has no feature map {name!r}: it has {', '.join(shapes[run.name])}")
        for name, shape in join_shapes(shapes[run.name], maps, "--maps").items():
            if strides.setdefault(name, shape.stride) != shape.stride:
                raise ValueError(
                    f"feature map {name} has stride {strides[name]} in {runs[0].name} and {shape.stride} in "
                    f"{run.name}: choose maps of equal strides with --maps"
                )
    return dict(sorted(strides.items(), key=lambda item: item[1]))


def features_markdown(analysis: FeatureAnalysis) -> str:
    """Tables of all measures, with a line on what was measured."""
    if not analysis.strides:
        return f"{sampled_positions(analysis)}\n"
    maps, *pairs = (markdown_table(_without_repeats(rows), headers, texts=2) for headers, rows in tables(analysis))
    text = [sampled_positions(analysis), maps, *(["Two scales together:", *pairs] if pairs else [])]
    return "\n\n".join([*text, NOTES]) + "\n"


def sampled_positions(analysis: FeatureAnalysis) -> str:
    """A line on what was measured."""
    if not analysis.strides:
        return NO_MAPS
    sampled = next(iter(analysis.measures.values()))["raw"]["maps"]
    positions = ", ".join(f"{values['positions']} of {name}" for name, values in sampled.items())
    classes = max(values["classes"] for values in sampled.values())
    return (
        f"Measured on {analysis.dataset} at the same positions for all runs: {positions}. With {classes} classes, "
        f"guessing has an accuracy of {number(1 / classes if classes else np.nan)}."
    )


def tables(analysis: FeatureAnalysis) -> list[tuple[list[str], list[list[str]]]]:
    """Headers and rows of the measures of single maps, and of those of two scales together, if there are any."""
    found = [_table(analysis, "maps", MAP_MEASURES, _map_titles(analysis))]
    pairs = dict.fromkeys(pair for _, measures in _by_run_and_stage(analysis) for pair in measures["scales"])
    if pairs:
        titles = {pair: pair.replace(" ", ", ") for pair in pairs}
        found.append(_table(analysis, "scales", SCALE_MEASURES, titles))
    return found


def draw_features(analysis: FeatureAnalysis, points: int, output: Path) -> list[Path]:
    """Draw t-SNE maps: ``tsne.png`` with a row for each run, ``joint.png`` with all scales of a run in one map.

    Args:
        analysis: what to draw.
        points: largest number of vectors in a map of ``tsne.png``, and about the number of those of all scales in
            a map of ``joint.png``; 0 for no pictures.
        output: folder for the pictures.
    """
    if not points or not analysis.strides:
        return []
    metadata = MetadataCatalog.get(analysis.dataset)
    names, colors = metadata.stuff_classes, class_colors(metadata)
    logger.info("Drawing t-SNE maps")
    titles = _map_titles(analysis)
    networks = {
        run: {titles[name]: balance(vectors, points) for name, vectors in maps.items()}
        for run, maps in analysis.raw.items()
    }
    notes = {
        run: {
            titles[name]: f"neighbours right: {number(values['neighbour_accuracy'])}"
            for name, values in figures["raw"]["maps"].items()
        }
        for run, figures in analysis.measures.items()
    }
    title = f"Feature maps on {analysis.dataset} by t-SNE, before any projector: same positions, coloured by class"
    files = [save(draw_embeddings(networks, names, colors, title, notes), str(output / "tsne.png"))]

    panels = {f"{run}, before any projector": maps for run, maps in analysis.raw.items()}
    panels |= {f"{run}, after the projectors": maps for run, maps in analysis.projected.items()}
    panels = {
        name: {titles[scale]: balance(vectors, -(-points // len(maps))) for scale, vectors in maps.items()}
        for name, maps in panels.items()
        if len(maps) > 1 and len({vectors.vectors.shape[1] for vectors in maps.values()}) == 1
    }
    if panels:
        title = f"All scales in one map on {analysis.dataset} by t-SNE: coloured by class, marked by scale"
        files.append(save(draw_joint_embeddings(panels, names, colors, title), str(output / "joint.png")))
    return [Path(file) for file in files]


def write_features(analysis: FeatureAnalysis, output: Path) -> list[Path]:
    """Write ``features.md`` and ``features.json``."""
    markdown, data = output / "features.md", output / "features.json"
    write_text(markdown, f"# Features\n\n{features_markdown(analysis)}")
    write_json(data, features_json(analysis))
    return [markdown, data]


def features_json(analysis: FeatureAnalysis) -> dict:
    """All figures of an analysis, for a JSON file."""
    return {"dataset": analysis.dataset, "strides": dict(analysis.strides), "runs": dict(analysis.measures)}


def _by_run_and_stage(analysis: FeatureAnalysis) -> list[tuple[str, Mapping]]:
    """What was measured, in words, and its measures."""
    suffix = {"raw": "", "projected": ", projected"}
    return [(run + suffix[stage], m) for run, stages in analysis.measures.items() for stage, m in stages.items()]


def _map_titles(analysis: FeatureAnalysis) -> dict[str, str]:
    return {name: f"{name} (stride {stride})" for name, stride in analysis.strides.items()}


def _table(
    analysis: FeatureAnalysis, part: str, measures: Mapping[str, str], columns: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """A table of measures of a part of the figures: rows for all runs under each measure, columns with their titles."""
    rows = [
        [label, who, *(_cell(figures[part].get(name, {}), key) for name in columns)]
        for key, label in measures.items()
        for who, figures in _by_run_and_stage(analysis)
    ]
    return ["measure", "run", *columns.values()], rows


def _without_repeats(rows: Sequence[list[str]]) -> list[list[str]]:
    """Rows whose first cell is empty where it repeats the one above."""
    above = [None, *(row[0] for row in rows)]
    return [["" if row[0] == label else row[0], *row[1:]] for row, label in zip(rows, above)]


def _cell(values: Mapping[str, float], key: str) -> str:
    text = number(values.get(key, np.nan))
    deviation = values.get(f"{key}_std", np.nan)
    return text if np.isnan(deviation) else f"{text} ± {number(deviation)}"


def _check_same_positions(
    expected: LabelledVectors, found: LabelledVectors, name: str, first: TrainedRun, run: TrainedRun
) -> None:
    for key in ("classes", "images"):
        if not np.array_equal(getattr(expected, key), getattr(found, key)):
            raise ValueError(
                f"feature map {name} of {first.name} and {run.name} cannot be compared at the same positions: their "
                "networks map images to grids of different sizes"
            )

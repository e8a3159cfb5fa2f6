"""Two runs side by side: scores, features and pictures."""

import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch import Tensor
from tqdm import tqdm

from ..config_files import flatten
from ..data import class_colors, get_ignore_label, read_image, read_label
from ..data.files import as_file_name
from ..engine.setup import check_datasets
from ..evaluation import build_evaluator, build_inference_model
from ..evaluation.confusion_evaluator import predicted_classes
from ..evaluation.features import NEIGHBOURS
from ..output import write_text
from ..tables import markdown_table, number, write_json
from ..visualize import Sample, draw_anchors, draw_predictions, read_metrics
from ..visualize.curves import is_of_anchors
from ..visualize.style import save
from .features import FeatureAnalysis, analyze_features, draw_features, features_json, features_markdown
from .runs import TrainedRun

logger = logging.getLogger(__name__)

# What the pictures show, by the name of the file.
CAPTIONS = {
    "tsne": "Feature maps before any projector, by t-SNE: the same positions for both, coloured by class.",
    "joint": "All scales of a network in one map, by t-SNE: coloured by class, marked by scale.",
    "predictions": "The images on which predictions differ most.",
    "anchors": "Number of anchors of each scale and the mean cosine of two of them, over the iterations.",
}


@dataclass(frozen=True)
class Comparison:
    """A baseline and a run that is compared with it, on one dataset.

    Attributes:
        runs: the baseline and the other run.
        images: number of labelled images.
        results: metrics of each in percent, by name of the run, see :func:`..evaluation.summarize_confusion`.
        shares: percentage of the labelled pixels, by class.
        samples: the images on which their predictions differ most, the largest difference first.
        features: measures of the feature maps of both.
    """

    runs: tuple[TrainedRun, TrainedRun]
    images: int
    results: Mapping[str, Mapping[str, float]]
    shares: Mapping[str, float]
    samples: Sequence[Sample]
    features: FeatureAnalysis


def check_comparable(baseline: TrainedRun, run: TrainedRun, dataset: str) -> None:
    """Check that two networks learned the classes of a dataset and are evaluated alike.

    Raises:
        ValueError: they did not, or their evaluations differ.
    """
    for each in (baseline, run):
        cfg = each.cfg_for(dataset)
        cfg.DATASETS.TRAIN = tuple(name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog)
        try:
            check_datasets(cfg)
        except ValueError as error:
            raise ValueError(f"{each.name} cannot be evaluated on {dataset}: {error}") from error
    views = _views(baseline.cfg), _views(run.cfg)
    for key in views[0]:
        if views[0][key] != views[1][key]:
            raise ValueError(
                f"{baseline.name} and {run.name} are evaluated in different ways, {key} is {views[0][key]} and "
                f"{views[1][key]}: evaluate one of them again (--eval-only) with the other's settings"
            )


def compare_runs(
    baseline: TrainedRun, run: TrainedRun, dataset: str, dataset_dicts: Sequence[dict], output: Path
) -> Comparison:
    """Evaluate two runs on a dataset and measure their features.

    Args:
        baseline, run: comparable by :func:`check_comparable`.
        dataset: a registered dataset.
        dataset_dicts: its labelled images.
        output: folder; the results of each evaluation go to ``evaluation/<run>`` in it.
    """
    runs = (baseline, run)
    metadata = MetadataCatalog.get(dataset)
    folders = {run.name: output / "evaluation" / as_file_name(run.name) for run in runs}
    evaluators = {run.name: build_evaluator(run.cfg, dataset, str(folders[run.name])) for run in runs}
    for evaluator in evaluators.values():
        evaluator.reset()
    # The images that differ most: share of their pixels, position in the dataset from its end, predictions.
    most: list[tuple[float, int, dict[str, np.ndarray]]] = []
    logger.info("Predicting %d images with both networks", len(dataset_dicts))
    for index, scores in enumerate(_predict(runs, dataset, dataset_dicts)):
        for name, score in scores.items():
            evaluators[name].process([dataset_dicts[index]], [{"sem_seg": score}])
        predictions = {name: predicted_classes(score).cpu().numpy() for name, score in scores.items()}
        label = read_label(dataset_dicts[index]["sem_seg_file_name"], metadata)
        differ = predictions[baseline.name] != predictions[run.name]
        counted = label != get_ignore_label(metadata)
        share = float(differ[counted].mean()) if counted.any() else 0.0
        heapq.heappush(most, (share, -index, predictions))
        if len(most) > run.cfg.VISUALIZE.NUM_IMAGES:
            heapq.heappop(most)
    results = {name: dict(evaluator.evaluate()["sem_seg"]) for name, evaluator in evaluators.items()}
    pixels = evaluators[run.name].confusion.sum(1)
    return Comparison(
        runs=runs,
        images=len(dataset_dicts),
        results=results,
        shares=dict(zip(metadata.stuff_classes, (100 * pixels / max(pixels.sum(), 1)).tolist())),
        samples=[_sample(dataset_dicts[-i], metadata, share, shown) for share, i, shown in sorted(most, reverse=True)],
        features=analyze_features(runs, dataset, dataset_dicts),
    )


def write_comparison(comparison: Comparison, output: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.json`` and pictures.

    The pictures are ``tsne.png`` and ``joint.png`` (see :func:`~.features.draw_features`), ``predictions.png``, the
    images on which predictions differ most, and ``anchors.png``, numbers and cosines of the anchors of each scale, for
    the runs that logged them.

    Returns:
        The files, the text first.
    """
    metadata = MetadataCatalog.get(comparison.features.dataset)
    pictures = draw_features(comparison.features, comparison.runs[1].cfg.VISUALIZE.TSNE_POINTS, output)
    if comparison.samples:
        ignore_label = get_ignore_label(metadata)
        figure = draw_predictions(comparison.samples, metadata.stuff_classes, class_colors(metadata), ignore_label)
        pictures.append(Path(save(figure, str(output / "predictions.png"))))
    logs = {run.name: run.folder / "metrics.json" for run in comparison.runs}
    metrics = {name: read_metrics(str(path)) for name, path in logs.items() if path.is_file()}
    metrics = {name: series for name, series in metrics.items() if any(map(is_of_anchors, series))}
    if metrics:
        pictures.append(Path(save(draw_anchors(metrics), str(output / "anchors.png"))))
    text, data = output / "comparison.md", output / "comparison.json"
    write_text(text, comparison_markdown(comparison, pictures))
    write_json(data, comparison_json(comparison))
    return [text, data, *pictures]


def summary(comparison: Comparison) -> str:
    """Mean IoUs and nearest-neighbour accuracy of each map, in a few lines."""
    names = [run.name for run in comparison.runs]
    means = [key for key in comparison.results[names[0]] if key.startswith("mIoU")]
    rows = [[f"{key} (%)", *_pair([comparison.results[name][key] for name in names])] for key in means]
    maps = [comparison.features.measures[name]["raw"]["maps"] for name in names]
    for scale, stride in comparison.features.strides.items():
        label = f"{scale} (stride {stride}): accuracy of {NEIGHBOURS} nearest neighbours"
        rows.append([label, *_pair([of_run[scale]["neighbour_accuracy"] for of_run in maps])])
    where = f"{comparison.features.dataset}, {comparison.images} images"
    return markdown_table(rows, [where, *names, "difference"])


def comparison_markdown(comparison: Comparison, pictures: Sequence[Path]) -> str:
    """The whole comparison as a page that shows the pictures, which lie beside it."""
    names = [run.name for run in comparison.runs]
    results = [comparison.results[name] for name in names]
    class_keys = {f"IoU-{name}": name for name in comparison.shares}
    means = [key for key in results[0] if key not in class_keys and not key.startswith("ACC-")]
    headers = [*names, "difference"]
    classes = [
        [name, *_pair([r[key] for r in results]), number(comparison.shares[name])] for key, name in class_keys.items()
    ]
    sections = [
        f"# {names[0]} and {names[1]} on {comparison.features.dataset}",
        "\n".join(f"- {run.name}: `{run.weights}`" for run in comparison.runs),
        f"{comparison.images} images. Differences are the second minus the first.",
        "## Scores",
        markdown_table([[key, *_pair([r[key] for r in results])] for key in means], ["%", *headers]),
        markdown_table(classes, ["IoU (%)", *headers, "pixels (%)"]),
        "## Features",
        features_markdown(comparison.features).strip(),
    ]
    if pictures:
        sections.append("## Pictures")
        sections += [f"{CAPTIONS[p.stem]}\n\n![{CAPTIONS[p.stem]}]({p.name})" for p in pictures]
    settings = [[f"`{key}`", *(f"`{value}`" for value in values)] for key, values in _settings(comparison.runs).items()]
    if settings:
        sections += ["## Settings that differ", markdown_table(settings, ["key", *names], texts=3)]
    return "\n\n".join(sections) + "\n"


def comparison_json(comparison: Comparison) -> dict:
    """All figures of a comparison, for a JSON file."""
    first, second = (comparison.results[run.name] for run in comparison.runs)
    return {
        "dataset": comparison.features.dataset,
        "images": comparison.images,
        "runs": {run.name: {"folder": str(run.folder), "weights": str(run.weights)} for run in comparison.runs},
        "results": dict(comparison.results),
        "difference": {key: second[key] - value for key, value in first.items()},
        "pixels": dict(comparison.shares),
        "settings": _settings(comparison.runs),
        "features": features_json(comparison.features),
    }


@torch.no_grad()
def _predict(runs: Sequence[TrainedRun], dataset: str, dataset_dicts: Sequence[dict]) -> Iterator[dict[str, Tensor]]:
    """Scores (K, H, W) of each run, by its name, image by image."""
    networks = {run.name: (run.mapper_for(dataset), build_inference_model(run.cfg, run.model)) for run in runs}
    for dataset_dict in tqdm(dataset_dicts, unit="image", disable=None, leave=False):
        yield {name: segment([mapper(dataset_dict)])[0]["sem_seg"] for name, (mapper, segment) in networks.items()}


def _sample(dataset_dict: dict, metadata: Metadata, share: float, predictions: Mapping[str, np.ndarray]) -> Sample:
    return Sample(
        name=f"{Path(dataset_dict['file_name']).stem}, {100 * share:.1f} % differ",
        image=read_image(dataset_dict["file_name"]),
        predictions=predictions,
        label=read_label(dataset_dict["sem_seg_file_name"], metadata),
    )


def _views(cfg: CfgNode) -> dict[str, object]:
    """How an evaluation shows images to a network."""
    window, aug = cfg.TEST.SLIDING_WINDOW, cfg.TEST.AUG
    return {
        "TEST.SLIDING_WINDOW": [list(window.SIZE), list(window.STRIDE)] if window.ENABLED else "off",
        "TEST.AUG": [list(aug.SCALES), aug.FLIP] if aug.ENABLED else "off",
    }


def _settings(runs: Sequence[TrainedRun]) -> dict[str, list]:
    """Config keys in which two runs differ, with both values; the folder is left out."""
    first, second = (flatten(run.cfg) for run in runs)
    return {
        key: [first.get(key), second.get(key)]
        for key in first | second
        if key != "OUTPUT_DIR" and first.get(key) != second.get(key)
    }


def _pair(values: Sequence[float]) -> list[str]:
    first, second = values
    return [number(first), number(second), number(second - first, sign=True)]

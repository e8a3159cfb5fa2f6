"""Runs side by side: scores, features and pictures."""

import heapq
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch import Tensor
from tqdm import tqdm

from ..config import default_config, load_config
from ..config_files import flatten
from ..data import class_colors, get_ignore_label, read_image, read_label
from ..data.files import as_file_name
from ..engine.setup import check_datasets
from ..evaluation import Calibration, build_evaluator, build_inference_model, confidence_of, entropy_of
from ..evaluation.confusion_evaluator import predicted_classes
from ..evaluation.features import NEIGHBOURS
from ..output import numbered, write_text
from ..tables import markdown_table, number, write_json
from ..visualize import Sample, draw_anchors, draw_predictions, read_metrics
from ..visualize.curves import Series, is_of_anchors, last_anchors
from ..visualize.style import save
from .features import (
    NO_MAPS,
    FeatureAnalysis,
    analyze_features,
    common_maps,
    draw_features,
    features_json,
    features_markdown,
)
from .runs import TrainedRun

logger = logging.getLogger(__name__)

# What the pictures show, by the name of the file.
CAPTIONS = {
    "tsne": "Feature maps before any projector, by t-SNE: the same positions for all runs, coloured by class.",
    "joint": "All scales of a network in one map, by t-SNE: coloured by class, marked by scale.",
    "predictions": "The images on which predictions differ most, or of a single run those with most errors.",
    "anchors": "Number of anchors of each scale and the mean cosine of two of them, over the iterations.",
}


# At most this many pairs of classes are listed as confused.
MAX_CONFUSED = 15


@dataclass(frozen=True)
class SeenImage:
    """An image as the networks see it.

    Attributes:
        dataset_dict: names its files.
        wrong: share of its labelled pixels that is predicted wrong, by run.
        changed: share of its labelled pixels that any run predicts otherwise than the baseline.
        predictions: (H, W) class ids, by run.
        entropies: (H, W) float16, see :func:`..evaluation.entropy_of`, by run; without networks that give no scores.
    """

    dataset_dict: Mapping
    wrong: Mapping[str, float]
    changed: float
    predictions: Mapping[str, np.ndarray]
    entropies: Mapping[str, np.ndarray]

    def sample(self, metadata: Metadata) -> Sample:
        """The image with its label, read again, for a picture."""
        says = f"{100 * self.changed:.1f} % differ" if len(self.predictions) > 1 else ""
        return Sample(
            name=", ".join(filter(None, [Path(self.dataset_dict["file_name"]).stem, says])),
            image=read_image(self.dataset_dict["file_name"]),
            predictions=self.predictions,
            label=read_label(self.dataset_dict["sem_seg_file_name"], metadata),
        )


@dataclass(frozen=True)
class Comparison:
    """Runs on one dataset; the first is the baseline.

    Attributes:
        runs: one or more.
        images: number of labelled images.
        results: metrics of each in percent, by name of the run, see :func:`..evaluation.summarize_confusion`.
        confusions: (K, K) pixels of each, rows are labels and columns predictions.
        calibrations: of each network that gives scores.
        shares: percentage of the labelled pixels, by class.
        worst: the images with the largest share of wrong pixels, as mean over the runs, the largest first.
        changed: the images on which predictions differ most, the largest difference first; none for a single run.
        features: measures of the feature maps of all; empty where they have none in common.
        logs: what each logged in training, see :func:`..visualize.read_metrics`; without runs that
            have no metrics.json.
    """

    runs: tuple[TrainedRun, ...]
    images: int
    results: Mapping[str, Mapping[str, float]]
    confusions: Mapping[str, np.ndarray]
    calibrations: Mapping[str, Calibration]
    shares: Mapping[str, float]
    worst: Sequence[SeenImage]
    changed: Sequence[SeenImage]
    features: FeatureAnalysis
    logs: Mapping[str, Mapping[str, Series]]

    @property
    def names(self) -> list[str]:
        """Of the runs."""
        return [run.name for run in self.runs]


def check_comparable(baseline: TrainedRun, run: TrainedRun, dataset: str) -> None:
    """Check that two networks learned the classes of a dataset and are evaluated alike.

    Raises:
        ValueError: they did not, or their evaluations differ.
    """
    for each in (baseline, run):
        cfg = each.cfg_for(dataset)
        cfg.DATASETS.TRAIN = tuple(name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog)
        try:
            check_datasets(cfg, ("TEST", "TRAIN"))  # the latter may be known elsewhere alone: it is not needed
        except ValueError as error:
            raise ValueError(f"{each.name} cannot be evaluated on {dataset}: {error}") from error
    views = _views(baseline.cfg), _views(run.cfg)
    for key in views[0]:
        if views[0][key] != views[1][key]:
            raise ValueError(
                f"{baseline.name} and {run.name} are evaluated in different ways, {key} is {views[0][key]} and "
                f"{views[1][key]}: choose one way for all, such as --opts {key}.ENABLED False"
            )


def compare_runs(runs: Sequence[TrainedRun], dataset: str, dataset_dicts: Sequence[dict], output: Path) -> Comparison:
    """Evaluate runs on a dataset and measure their features.

    Args:
        runs: one or more; each is comparable with the first by :func:`check_comparable`.
        dataset: a registered dataset.
        dataset_dicts: its labelled images.
        output: folder; the results of each evaluation go to ``evaluation/<run>`` in it, with a number behind it where
            another run has this name.

    Raises:
        ValueError: feature maps hold values that are not finite, or cannot be read at the same positions.
    """
    # First, since it may refuse the networks, and predicting all images takes longer.
    if common_maps(runs):
        features = analyze_features(runs, dataset, dataset_dicts)
    else:
        logger.warning(NO_MAPS)
        features = FeatureAnalysis(dataset, {}, {}, {}, {})
    baseline, *others = (run.name for run in runs)
    metadata = MetadataCatalog.get(dataset)
    ignore_label = get_ignore_label(metadata)
    folders = _folders([baseline, *others], output / "evaluation")
    evaluators = {run.name: build_evaluator(run.cfg, dataset, str(folders[run.name])) for run in runs}
    for evaluator in evaluators.values():
        evaluator.reset()
    calibrations: dict[str, Calibration] = {}
    shown = runs[-1].cfg.VISUALIZE.NUM_IMAGES
    worst, changed = _Largest(shown), _Largest(shown if others else 0)
    logger.info("Predicting %d images with %d %s", len(dataset_dicts), len(runs), "networks" if others else "network")
    for index, scores in enumerate(_predict(runs, dataset, dataset_dicts)):
        dataset_dict = dataset_dicts[index]
        label = read_label(dataset_dict["sem_seg_file_name"], metadata)
        counted = label != ignore_label
        predictions = {}
        for name, (score, probabilities) in scores.items():
            evaluators[name].process([dataset_dict], [{"sem_seg": score}])
            predictions[name] = predicted_classes(score).cpu().numpy().astype(np.uint16)
            if score.dim() == 3:
                confidence = confidence_of(score, probabilities).cpu().numpy()[counted]
                right = (predictions[name] == label)[counted]
                calibrations.setdefault(name, Calibration()).add(confidence, right)
        if not counted.any():
            continue
        wrong = {name: float((classes != label)[counted].mean()) for name, classes in predictions.items()}
        differ = np.any([predictions[name] != predictions[baseline] for name in predictions], axis=0)
        share, mean = float(differ[counted].mean()), math.fsum(wrong.values()) / len(wrong)
        if worst.takes(mean) or changed.takes(share):
            entropies = {
                name: entropy_of(score, probabilities).half().cpu().numpy()
                for name, (score, probabilities) in scores.items()
                if score.dim() == 3
            }
            image = SeenImage(dataset_dict, wrong, share, predictions, entropies)
            worst.add(mean, index, image)
            changed.add(share, index, image)
    results = {name: dict(evaluator.evaluate()["sem_seg"]) for name, evaluator in evaluators.items()}
    pixels = evaluators[baseline].confusion.sum(1)
    logs = {run.name: run.folder / "metrics.json" for run in runs}
    return Comparison(
        runs=tuple(runs),
        images=len(dataset_dicts),
        results=results,
        confusions={name: evaluator.confusion for name, evaluator in evaluators.items()},
        calibrations=calibrations,
        shares=dict(zip(metadata.stuff_classes, (100 * pixels / max(pixels.sum(), 1)).tolist())),
        worst=worst.images(),
        changed=changed.images(),
        features=features,
        logs={name: read_metrics(str(path)) for name, path in logs.items() if path.is_file()},
    )


def _folders(names: Iterable[str], parent: Path) -> dict[str, Path]:
    """A folder for each run. Different names may be alike as names of files."""
    folders: dict[str, Path] = {}
    for name in names:
        candidates = (parent / candidate for candidate in numbered(as_file_name(name)))
        folders[name] = next(folder for folder in candidates if folder not in folders.values())
    return folders


class _Largest:
    """The images with the largest values; of equal ones the first."""

    def __init__(self, count: int):
        self.count = count
        self.heap: list[tuple[float, int, SeenImage]] = []

    def takes(self, value: float) -> bool:
        """Whether an image that comes after all others would be kept."""
        return len(self.heap) < self.count or (self.count > 0 and value > self.heap[0][0])

    def add(self, value: float, index: int, image: SeenImage) -> None:
        if self.takes(value):
            heapq.heappush(self.heap, (value, -index, image))
            if len(self.heap) > self.count:
                heapq.heappop(self.heap)

    def images(self) -> list[SeenImage]:
        return [image for _, _, image in sorted(self.heap, key=lambda entry: entry[:2], reverse=True)]


def write_comparison(comparison: Comparison, output: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.json`` and pictures.

    The pictures are ``tsne.png`` and ``joint.png`` (see :func:`~.features.draw_features`), ``predictions.png``, the
    images on which predictions differ most (of a single run, those with most errors), and ``anchors.png``, numbers and
    cosines of the anchors of each scale, for the runs that logged them.

    Returns:
        The files, the text first.
    """
    metadata = MetadataCatalog.get(comparison.features.dataset)
    pictures = draw_features(comparison.features, comparison.runs[-1].cfg.VISUALIZE.TSNE_POINTS, output)
    shown = comparison.changed or comparison.worst
    if shown:
        samples = [image.sample(metadata) for image in shown]
        ignore_label = get_ignore_label(metadata)
        figure = draw_predictions(samples, metadata.stuff_classes, class_colors(metadata), ignore_label)
        pictures.append(Path(save(figure, str(output / "predictions.png"))))
    metrics = {name: series for name, series in comparison.logs.items() if any(map(is_of_anchors, series))}
    if metrics:
        pictures.append(Path(save(draw_anchors(metrics), str(output / "anchors.png"))))
    text, data = output / "comparison.md", output / "comparison.json"
    write_text(text, comparison_markdown(comparison, pictures))
    write_json(data, comparison_json(comparison))
    return [text, data, *pictures]


def summary(comparison: Comparison) -> str:
    """Mean IoUs and nearest-neighbour accuracy of each map, in a few lines."""
    names = comparison.names
    means = [key for key in comparison.results[names[0]] if key.startswith("mIoU")]
    rows = [[f"{key} (%)", *_beside([comparison.results[name][key] for name in names])] for key in means]
    for scale, stride in comparison.features.strides.items():
        label = f"{scale} (stride {stride}): accuracy of {NEIGHBOURS} nearest neighbours"
        maps = [comparison.features.measures[name]["raw"]["maps"][scale] for name in names]
        rows.append([label, *_beside([values["neighbour_accuracy"] for values in maps])])
    where = f"{comparison.features.dataset}, {comparison.images} images"
    return markdown_table(rows, [where, *names, *differences(names)])


def comparison_markdown(comparison: Comparison, pictures: Sequence[Path]) -> str:
    """The whole comparison as a page that shows the pictures, which lie beside it."""
    names = comparison.names
    results = [comparison.results[name] for name in names]
    class_keys = {f"IoU-{name}": name for name in comparison.shares}
    headers = [*names, *differences(names)]
    classes = [
        [name, *_beside([r[key] for r in results]), number(comparison.shares[name])] for key, name in class_keys.items()
    ]
    says = " Differences are each run minus the first." if len(names) > 1 else ""
    sections = [
        f"# {title(comparison)}",
        "\n".join(f"- {run.name}: `{run.weights}`" for run in comparison.runs),
        f"{comparison.images} images.{says}",
        "## Scores",
        markdown_table(
            [[key, *_beside([r[key] for r in results])] for key in overall_metrics(comparison)], ["%", *headers]
        ),
        markdown_table(classes, ["IoU (%)", *headers, "pixels (%)"]),
        "## Features",
        features_markdown(comparison.features).strip(),
    ]
    if pictures:
        sections.append("## Pictures")
        sections += [f"{CAPTIONS[p.stem]}\n\n![{CAPTIONS[p.stem]}]({p.name})" for p in pictures]
    differ = [
        [f"`{key}`", *(f"`{value}`" for value in values)] for key, values in differing_settings(comparison.runs).items()
    ]
    if differ and len(names) > 1:
        sections += ["## Settings that differ", markdown_table(differ, ["key", *names], texts=1 + len(names))]
    return "\n\n".join(sections) + "\n"


def title(comparison: Comparison) -> str:
    """What is compared, in words."""
    *first, last = comparison.names
    names = f"{', '.join(first)} and {last}" if first else last
    return f"{names} on {comparison.features.dataset}"


def overall_metrics(comparison: Comparison) -> list[str]:
    """The metrics that are of no single class."""
    of_classes = {f"{kind}-{name}" for name in comparison.shares for kind in ("IoU", "ACC")}
    return [key for key in comparison.results[comparison.names[0]] if key not in of_classes]


def comparison_json(comparison: Comparison) -> dict:
    """All figures of a comparison, for a JSON file."""
    first, *others = (comparison.results[name] for name in comparison.names)
    return {
        "dataset": comparison.features.dataset,
        "images": comparison.images,
        "runs": {run.name: {"folder": str(run.folder), "weights": str(run.weights)} for run in comparison.runs},
        "results": dict(comparison.results),
        "differences": {
            name: {key: other[key] - value for key, value in first.items()}
            for name, other in zip(comparison.names[1:], others)
        },
        "pixels": dict(comparison.shares),
        "confused": _confused(comparison),
        "calibration": {
            name: {
                "ECE": calibration.ece,
                "pixels": calibration.pixels.tolist(),
                "confidence": calibration.mean_confidence.tolist(),
                "accuracy": calibration.accuracy.tolist(),
            }
            for name, calibration in comparison.calibrations.items()
        },
        "worst": [_image_json(image) for image in comparison.worst],
        "changed": [_image_json(image) for image in comparison.changed],
        "settings": differing_settings(comparison.runs),
        "anchors": {name: last_anchors(series) for name, series in comparison.logs.items()},
        "features": features_json(comparison.features),
    }


def _image_json(image: SeenImage) -> dict:
    wrong = {name: 100 * share for name, share in image.wrong.items()}
    return {"file": image.dataset_dict["file_name"], "wrong": wrong, "changed": 100 * image.changed}


def _confused(comparison: Comparison) -> list[dict]:
    """Pairs (class, predicted class), the pair with the largest share of the class's pixels first."""
    classes = list(comparison.shares)
    counts = np.stack([comparison.confusions[name] for name in comparison.names]).astype(float)
    shares = 100 * counts / np.maximum(counts.sum(2, keepdims=True), 1)
    largest = shares.max(0) * (1 - np.eye(len(classes)))
    order = np.argsort(-largest, axis=None, kind="stable")[:MAX_CONFUSED]
    pairs = [tuple(map(int, np.unravel_index(i, largest.shape))) for i in order]
    return [
        {
            "label": classes[label],
            "predicted": classes[predicted],
            "shares": dict(zip(comparison.names, shares[:, label, predicted].tolist())),
        }
        for label, predicted in pairs
        if largest[label, predicted] > 0
    ]


@torch.no_grad()
def _predict(
    runs: Sequence[TrainedRun], dataset: str, dataset_dicts: Sequence[dict]
) -> Iterator[dict[str, tuple[Tensor, bool]]]:
    """Scores (K, H, W) of each run, by its name, image by image, and whether they are probabilities."""
    networks = {run.name: (run.mapper_for(dataset), build_inference_model(run.cfg, run.model)) for run in runs}
    for dataset_dict in tqdm(dataset_dicts, unit="image", disable=None, leave=False):
        yield {
            name: (segment([mapper(dataset_dict)])[0]["sem_seg"], getattr(segment, "gives_probabilities", False))
            for name, (mapper, segment) in networks.items()
        }


def _views(cfg: CfgNode) -> dict[str, object]:
    """How an evaluation shows images to a network, and in which precision it computes."""
    window, aug = cfg.TEST.SLIDING_WINDOW, cfg.TEST.AUG
    return {
        "TEST.SLIDING_WINDOW": [list(window.SIZE), list(window.STRIDE)] if window.ENABLED else "off",
        "TEST.AUG": [list(aug.SCALES), aug.FLIP] if aug.ENABLED else "off",
        "TEST.AMP": cfg.SOLVER.AMP.DTYPE if cfg.TEST.AMP.ENABLED else "off",
    }


def differing_settings(runs: Sequence[TrainedRun]) -> dict[str, list]:
    """Config keys in which runs differ, with all values, or a single run from the defaults; folders are left out."""
    # From the files, since loading a run turns its pretrained weights off.
    configs = [flatten(load_config(str(run.folder / "config.yaml"), run.overrides)) for run in runs]
    if len(configs) == 1:
        configs.insert(0, flatten(default_config()))
    values = {key: [config.get(key) for config in configs] for key in dict.fromkeys(k for c in configs for k in c)}
    return {
        key: found for key, found in values.items() if key != "OUTPUT_DIR" and any(value != found[0] for value in found)
    }


def differences(names: Sequence[str]) -> list[str]:
    """Headers of the differences to the first run that tables show behind the values of all."""
    return ["difference"] if len(names) == 2 else [f"{name} − {names[0]}" for name in names[1:]]


def _beside(values: Sequence[float]) -> list[str]:
    first, *others = values
    return [*map(number, values), *(number(value - first, sign=True) for value in others)]

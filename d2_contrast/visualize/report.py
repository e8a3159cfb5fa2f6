"""The pictures of a run."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import inference_context
from matplotlib.figure import Figure
from torch import nn

from ..data import SemSegMapper, class_colors, get_ignore_label, read_image, read_label
from ..evaluation import balance, build_inference_model, sample_features
from ..evaluation.confusion_evaluator import predicted_classes
from ..modeling.features import contrasted_features, join_shapes
from .confusion import draw_confusion
from .curves import draw_curves, read_metrics
from .embedding import draw_embeddings
from .predictions import Sample, draw_predictions, share_correct
from .style import save

logger = logging.getLogger(__name__)

# Images whose feature maps are drawn, at most.
EMBEDDED_IMAGES = 64


def write_report(
    cfg: CfgNode, model: nn.Module, confusion: np.ndarray | None = None, folder: str | None = None
) -> list[str]:
    """Draw the pictures of a run. A picture is left out if the data for it is missing.

    - ``predictions.png``: ``cfg.VISUALIZE.NUM_IMAGES`` images, evenly spread over the first test dataset, with their
      labels, predictions and errors, the worst first;
    - ``tsne.png``: the feature maps that are contrasted, or would be, for a dataset with labels;
    - ``confusion.png``: the confusion matrix, if given;
    - ``curves.png``: losses, mIoU and learning rate, if there is a metrics.json in the folder.

    Args:
        cfg: the config of the run.
        model: a segmentor, unwrapped; its mode is kept.
        confusion: (K, K) pixels of the first test dataset, rows are labels and columns predictions.
        folder: for the pictures, ``cfg.OUTPUT_DIR`` by default.

    Returns:
        Paths of the files written. A picture that cannot be drawn is left out with a warning, so that a finished
        training is not lost.
    """
    folder = folder or cfg.OUTPUT_DIR
    os.makedirs(folder, exist_ok=True)
    written = []

    def write(name: str, draw: Callable[[], Figure]) -> None:
        try:
            written.append(save(draw(), os.path.join(folder, name)))
        except Exception as error:
            logger.warning("%s could not be drawn (%s: %s)", name, type(error).__name__, error, exc_info=True)

    if cfg.DATASETS.TEST:
        name = cfg.DATASETS.TEST[0]
        dicts = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
        mapper = SemSegMapper(cfg, is_train=False)
        with inference_context(model), torch.no_grad():
            if dicts and cfg.VISUALIZE.NUM_IMAGES > 0:
                picked = spread(dicts, cfg.VISUALIZE.NUM_IMAGES)
                write("predictions.png", lambda: _draw_predictions(cfg, model, mapper, picked, metadata))
            labelled = [d for d in dicts if "sem_seg_file_name" in d]
            if labelled and cfg.VISUALIZE.TSNE_POINTS > 0:
                embedded = spread(labelled, EMBEDDED_IMAGES)
                write("tsne.png", lambda: _draw_scales(cfg, model, mapper, embedded, metadata))
        if confusion is not None:
            ignore_label = get_ignore_label(metadata)
            write("confusion.png", lambda: draw_confusion(confusion, metadata.stuff_classes, ignore_label))
    metrics = os.path.join(folder, "metrics.json")
    if os.path.isfile(metrics):
        write("curves.png", lambda: draw_curves(read_metrics(metrics)))
    return written


def spread(dicts: list[dict], count: int) -> list[dict]:
    """Take at most ``count`` elements, evenly spread."""
    picks = np.linspace(0, len(dicts) - 1, min(count, len(dicts))).round().astype(int)
    return [dicts[i] for i in picks]


def _draw_predictions(
    cfg: CfgNode, model: nn.Module, mapper: SemSegMapper, dicts: list[dict], metadata: Metadata
) -> Figure:
    segment = build_inference_model(cfg, model)
    ignore_label = get_ignore_label(metadata)

    def right(sample: Sample) -> float:
        share = None if sample.label is None else share_correct(sample.predictions[""], sample.label, ignore_label)
        return 1.0 if share is None else share

    samples = sorted((_predict(segment, mapper, d, metadata) for d in dicts), key=right)
    return draw_predictions(samples, metadata.stuff_classes, class_colors(metadata), ignore_label)


def _predict(segment: nn.Module, mapper: SemSegMapper, dataset_dict: dict, metadata: Metadata) -> Sample:
    (output,) = segment([mapper(dataset_dict)])
    label_file = dataset_dict.get("sem_seg_file_name")
    return Sample(
        name=Path(dataset_dict["file_name"]).stem,
        image=read_image(dataset_dict["file_name"]),
        predictions={"": predicted_classes(output["sem_seg"]).cpu().numpy()},
        label=read_label(label_file, metadata) if label_file else None,
    )


def _draw_scales(cfg: CfgNode, model: nn.Module, mapper: SemSegMapper, dicts: list[dict], metadata: Metadata) -> Figure:
    shapes = model.backbone.output_shape()
    names = contrasted_features(cfg, shapes)
    vectors, _ = sample_features(model, mapper, dicts, metadata, names)
    points = {
        f"{name} (stride {shape.stride})": balance(vectors[name], cfg.VISUALIZE.TSNE_POINTS)
        for name, shape in join_shapes(shapes, names, "names").items()
    }
    title = f"Feature maps on {metadata.name} by t-SNE, before any projector"
    return draw_embeddings({"": points}, metadata.stuff_classes, class_colors(metadata), title)

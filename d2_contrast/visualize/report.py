"""The pictures of a run."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from ..data import SemSegMapper, read_image, read_label
from ..evaluation import build_inference_model
from ..evaluation.confusion_evaluator import predicted_classes
from .confusion import draw_confusion
from .curves import draw_curves, read_metrics
from .embedding import draw_embeddings, sample_embeddings
from .predictions import Sample, draw_predictions
from .style import distinct_colors, save

logger = logging.getLogger(__name__)

# Images from which embeddings are drawn, at most.
EMBEDDED_IMAGES = 64


def write_report(
    cfg: CfgNode, model: nn.Module, confusion: np.ndarray | None = None, folder: str | None = None
) -> list[str]:
    """Draw pictures of a run, each from what there is to draw it from.

    - ``predictions.png``: ``cfg.VISUALIZE.NUM_IMAGES`` images of the first test dataset with their labels,
      predictions and errors;
    - ``tsne.png``: embeddings of each contrasted scale, for a dataset with labels;
    - ``confusion.png``: the confusion matrix, if given;
    - ``curves.png``: losses, mIoU and learning rate, if there is a metrics.json in the folder.

    Args:
        cfg: the config of the run.
        model: the ContrastiveSegmentor, unwrapped; its mode is kept.
        confusion: (K, K) pixels of the first test dataset, rows are labels and columns predictions.
        folder: for the pictures, ``cfg.OUTPUT_DIR`` by default.

    Returns:
        Paths of the files written.
    """
    folder = folder or cfg.OUTPUT_DIR
    os.makedirs(folder, exist_ok=True)
    written = []

    def write(name: str, fig) -> None:
        written.append(save(fig, os.path.join(folder, name)))

    if cfg.DATASETS.TEST:
        name = cfg.DATASETS.TEST[0]
        dicts = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
        names, colors = metadata.stuff_classes, class_colors(metadata)
        mapper = SemSegMapper(cfg, is_train=False)
        with inference_context(model), torch.no_grad():
            if dicts and cfg.VISUALIZE.NUM_IMAGES > 0:
                picked = _spread(dicts, cfg.VISUALIZE.NUM_IMAGES)
                segment = build_inference_model(cfg, model)
                samples = [_predict(segment, mapper, d, metadata) for d in picked]
                ignore_label = metadata.get("ignore_label", 255)
                write("predictions.png", draw_predictions(samples, names, colors, ignore_label))
            labelled = [d for d in dicts if "sem_seg_file_name" in d]
            if labelled and cfg.VISUALIZE.TSNE_POINTS > 0:
                picked = _spread(labelled, EMBEDDED_IMAGES)
                write("tsne.png", _draw_scales(cfg, model, mapper, picked, metadata))
        if confusion is not None:
            write("confusion.png", draw_confusion(confusion, names))
    metrics = os.path.join(folder, "metrics.json")
    if os.path.isfile(metrics):
        write("curves.png", draw_curves(read_metrics(metrics)))
    return written


def class_colors(metadata: Metadata) -> np.ndarray:
    """Colours of a dataset's classes, (K, 3) uint8 RGB: its ``stuff_colors``, or distinct ones."""
    colors = metadata.get("stuff_colors")
    if colors is None:
        return distinct_colors(len(metadata.stuff_classes))
    return np.array(colors, dtype=np.uint8)


def _spread(dicts: list[dict], count: int) -> list[dict]:
    """At most ``count`` elements, evenly spread."""
    picks = np.linspace(0, len(dicts) - 1, min(count, len(dicts))).round().astype(int)
    return [dicts[i] for i in picks]


def _predict(segment: nn.Module, mapper: SemSegMapper, dataset_dict: dict, metadata: Metadata) -> Sample:
    (output,) = segment([mapper(dataset_dict)])
    label_file = dataset_dict.get("sem_seg_file_name")
    return Sample(
        name=Path(dataset_dict["file_name"]).stem,
        image=read_image(dataset_dict["file_name"]),
        prediction=predicted_classes(output["sem_seg"]).cpu().numpy(),
        label=read_label(label_file, metadata) if label_file else None,
    )


def _draw_scales(cfg: CfgNode, model, mapper: SemSegMapper, dicts: list[dict], metadata: Metadata):
    projected = bool(model.embed(model.extract_features([mapper(dicts[0])])))
    shapes = model.backbone.output_shape()
    names = [name for name in cfg.MODEL.CONTRAST.IN_FEATURES if name in shapes] or list(shapes)
    strides = {name: shapes[name].stride for name in names}

    def maps() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for dataset_dict in dicts:
            inputs = mapper(dataset_dict)
            features = model.extract_features([inputs])
            if projected:
                vectors = model.embed(features)
            else:
                vectors = {name: nn.functional.normalize(features[name]) for name in names}
            label = torch.from_numpy(read_label(dataset_dict["sem_seg_file_name"], metadata))
            size = inputs["image"].shape[1:]
            rows = torch.arange(size[0]) * label.shape[0] // size[0]
            columns = torch.arange(size[1]) * label.shape[1] // size[1]
            yield vectors, label[rows[:, None], columns]

    points = sample_embeddings(maps(), strides, cfg.VISUALIZE.TSNE_POINTS, metadata.get("ignore_label", 255))
    what = "Embeddings" if projected else "Backbone features (no contrastive branch)"
    return draw_embeddings(
        points,
        {name: f"{name} (stride {stride})" for name, stride in strides.items()},
        metadata.stuff_classes,
        class_colors(metadata),
        f"{what} of {metadata.name} by t-SNE",
    )

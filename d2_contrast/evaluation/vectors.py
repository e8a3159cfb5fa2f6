"""Labelled vectors from feature maps: which positions are drawn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import Metadata
from torch import Tensor, nn
from torch.nn import functional as F

from ..contrast import resize_labels
from ..data import SemSegMapper, get_ignore_label, read_label
from ..modeling.features import extract_features, join_features, join_shapes

# Positions that one image may give to a class, so that a class is seen in many images.
PER_IMAGE = 16


@dataclass(frozen=True)
class LabelledVectors:
    """Vectors of a feature map at some positions.

    Attributes:
        vectors: (P, D) float32.
        classes: (P,) class ids.
        images: (P,) ids of the images that the positions lie in.
    """

    vectors: np.ndarray
    classes: np.ndarray
    images: np.ndarray

    def __post_init__(self):
        shapes = [np.shape(x) for x in (self.vectors, self.classes, self.images)]
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1] or shapes[2] != shapes[0][:1]:
            raise ValueError(f"expected vectors (P, D), classes (P,) and images (P,), got {shapes}")

    @property
    def units(self) -> np.ndarray:
        """The vectors scaled to unit length, (P, D) float64; a vector of zeros stays one."""
        vectors = self.vectors.astype(np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, keep) -> "LabelledVectors":
        """Those at some indices, or where a mask is true."""
        return LabelledVectors(self.vectors[keep], self.classes[keep], self.images[keep])


def sample_vectors(
    maps: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    strides: Mapping[str, int],
    per_image: int = PER_IMAGE,
    ignore_label: int = 255,
    seed: int = 0,
) -> dict[str, LabelledVectors]:
    """Draw labelled vectors from feature maps.

    The draw depends on seed, labels and stride alone: maps of equal stride are seen at the same positions, whatever
    networks they come from.

    Args:
        maps: for each image its feature maps {name: (1, D, h, w)}, of the image padded at its bottom and right, and its
            label (H, W). At least one image; all give the same names.
        strides: pixels between neighbouring positions of each feature map.
        per_image: largest number of positions that a class of an image gives.
        ignore_label: label of pixels that give no vector.
        seed: of the draw.

    Raises:
        ValueError: a feature map holds values that are not finite.
    """
    generators = {name: np.random.default_rng([seed, stride]) for name, stride in strides.items()}
    drawn: dict[str, list[LabelledVectors]] = {}
    for image, (features, label) in enumerate(maps):
        for name, feature in features.items():
            feature, stride = feature.float().cpu(), strides[name]
            missing = (
                *(0, max(feature.shape[3] * stride - label.shape[1], 0)),
                *(0, max(feature.shape[2] * stride - label.shape[0], 0)),
            )
            padded = F.pad(label.cpu(), missing, value=ignore_label)
            classes = resize_labels(padded[None], feature.shape[2:]).flatten().numpy()
            keep = _per_class(np.where(classes == ignore_label, -1, classes), per_image, generators[name])
            vectors = feature[0].flatten(1).t()[keep].numpy()
            if not np.isfinite(vectors).all():
                raise ValueError(f"feature map {name} holds values that are not finite: did the training diverge?")
            drawn.setdefault(name, []).append(LabelledVectors(vectors, classes[keep], np.full(len(keep), image)))
    return {name: _concatenate(parts) for name, parts in drawn.items()}


def sample_features(
    model: nn.Module,
    mapper: SemSegMapper,
    dataset_dicts: Sequence[dict],
    metadata: Metadata,
    names: Sequence[str],
    seed: int = 0,
) -> tuple[dict[str, LabelledVectors], dict[str, LabelledVectors]]:
    """Draw labelled vectors from feature maps of a segmentor, see :func:`sample_vectors`.

    Args:
        model: a segmentor, in evaluation mode.
        mapper: makes its inputs.
        dataset_dicts: labelled images, at least one.
        metadata: of their dataset.
        names: feature maps of its backbone, "a+b" for two that are concatenated.

    Returns:
        Those of the feature maps themselves, and of the embeddings of the maps that have a projector, by name.
    """
    shapes = join_shapes(model.backbone.output_shape(), names, "names")
    after = {name: f"projected {name}" for name in names}

    def maps():
        for dataset_dict in dataset_dicts:
            inputs = mapper(dataset_dict)
            features = join_features(extract_features(model, [inputs]), names)
            embeddings = model.embed(features) if hasattr(model, "embed") else {}
            label = torch.from_numpy(read_label(dataset_dict["sem_seg_file_name"], metadata).astype(np.int64))
            raw = {name: features[name] for name in names}
            projected = {after[name]: embeddings[name] for name in names if name in embeddings}
            yield {**raw, **projected}, resize_labels(label[None], inputs["image"].shape[1:])[0]

    strides = {key: shapes[name].stride for name in names for key in (name, after[name])}
    sampled = sample_vectors(maps(), strides, ignore_label=get_ignore_label(metadata), seed=seed)
    return {n: sampled[n] for n in names}, {n: sampled[after[n]] for n in names if after[n] in sampled}


def balance(points: LabelledVectors, max_vectors: int, seed: int = 0) -> LabelledVectors:
    """Draw at most ``max_vectors`` vectors, about equally many of each class."""
    generator = np.random.default_rng(seed)
    share = max(max_vectors // max(len(np.unique(points.classes)), 1), 1)
    return points[generator.permutation(_per_class(points.classes, share, generator))[:max_vectors]]


def _per_class(classes: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of at most ``count`` random members of each class; negative ids are no classes."""
    picks = [generator.permutation(np.flatnonzero(classes == c))[:count] for c in np.unique(classes) if c >= 0]
    return np.concatenate(picks) if picks else np.zeros(0, dtype=np.int64)


def _concatenate(parts: Sequence[LabelledVectors]) -> LabelledVectors:
    return LabelledVectors(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("vectors", "classes", "images"))
    )

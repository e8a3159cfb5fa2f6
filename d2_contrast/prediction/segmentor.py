"""A trained network as a function of images."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import Tensor, nn

from ..data import Classes
from ..data.files import pixels_limited
from ..data.mapper import build_test_augmentation
from ..engine.trained import load_network, read_classes, read_trained
from ..evaluation.inference import build_views
from ..evaluation.metrics import argmax_classes
from .images import ImageLike, to_rgb
from .segmentation import Segmentation

# Given the index of an image and a shape (K, H, W), returns the array that takes its probabilities.
Allocate = Callable[[int, tuple[int, int, int]], np.ndarray]
# Given how much of an image, of 1, was predicted since the last call.
Advance = Callable[[float], object]


class Segmentor:
    """A trained network that is called with images.

    >>> segment = Segmentor.load("output/shapes/uper_r18_contrast")
    >>> result = segment("street.jpg")
    >>> result.overlay().save("overlay.png")

    It predicts as an evaluation does, by the windows, views and precision of ``cfg.TEST`` and at the size of
    ``cfg.INPUT.MIN_SIZE_TEST``; results have the size of the image.

    Attributes:
        model: the network, in evaluation mode.
        cfg: its config, with MODEL.WEIGHTS.
        classes: what it tells apart.
        batch: images of equal size, or windows, that go through the network at once.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, classes: Classes, batch: int = 4):
        """
        Raises:
            ValueError: a value of ``cfg.TEST`` is out of range, or ``batch`` is below 1.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}: expected 1 or more")
        self.model, self.cfg, self.classes, self.batch = model.eval(), cfg, classes, batch
        self._augmentations = T.AugmentationList(build_test_augmentation(cfg))
        self._inference = build_views(cfg, model, batch)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        config_file: str = "",
        overrides: Sequence[str] = (),
        device: str = "",
        batch: int = 4,
    ) -> "Segmentor":
        """Load a trained network; a moving average of its weights is taken where an evaluation would take it.

        Args:
            path: the folder of a run (OUTPUT_DIR), for its last checkpoint, or a file of weights. The config is
                ``config.yaml`` beside the weights, or the one in them.
            config_file: another config: a file, or the name of one of this project's.
            overrides: config keys and values in turn, such as ["TEST.SLIDING_WINDOW.ENABLED", "True"].
            device: such as "cpu" or "cuda:1"; "" for a GPU if there is one.
            batch: images of equal size, or windows, that go through the network at once.

        Raises:
            FileNotFoundError: there are no such weights.
            KeyError, ValueError: there is no config, it does not fit these weights or this version, or the device is
                not there.
        """
        cfg = read_trained(os.fspath(path), config_file, overrides)
        if device:
            cfg.MODEL.DEVICE = device
        _check_device(cfg.MODEL.DEVICE)
        model, _ = load_network(cfg, cfg.MODEL.WEIGHTS)
        return cls(model, cfg, read_classes(cfg), batch)

    def __repr__(self) -> str:
        return f"Segmentor({self.cfg.MODEL.WEIGHTS}, {len(self.classes)} classes, on {self.cfg.MODEL.DEVICE})"

    @overload
    def __call__(self, images: list | tuple, probabilities: bool = True) -> list[Segmentation]: ...

    @overload
    def __call__(self, images: ImageLike, probabilities: bool = True) -> Segmentation: ...

    def __call__(self, images, probabilities=True):
        """Segment one image, or a list of them.

        Args:
            images: an image as of :func:`to_rgb` (path, array, PIL image or tensor), or a list of such.
            probabilities: keep the probabilities of all classes. With False, and windows in ``cfg.TEST``, memory does
                not grow with classes times pixels.

        Returns:
            A Segmentation, or a list of them.

        Raises:
            OSError, TypeError, ValueError: as of :func:`to_rgb`, or the network refuses an image.
        """
        several = isinstance(images, (list, tuple))
        given = list(images) if several else [images]
        results = self.segment_arrays([self.read(image) for image in given], _allocate if probabilities else None)
        return results if several else results[0]

    def read(self, image: ImageLike) -> np.ndarray:
        """:func:`to_rgb`, of files of up to ``cfg.INPUT.MAX_PIXELS`` pixels."""
        with pixels_limited(self.cfg.INPUT.MAX_PIXELS):
            return to_rgb(image)

    def segment_arrays(
        self, images: Sequence[np.ndarray], allocate: Allocate | None = None, advance: Advance = lambda _: None
    ) -> list[Segmentation]:
        """Segment images that :func:`to_rgb` gave.

        Args:
            images: (H, W, 3) uint8, RGB. Neighbours of equal size go through the network together.
            allocate: gives the arrays that take the probabilities; None for no probabilities.
            advance: is told how far the prediction is: with windows after each row of them, otherwise image by image.
        """
        label_maps: list[np.ndarray] = []
        arrays: list[np.ndarray | None] = []
        for first, group in _groups(images, self.batch):
            inputs = [self._to_input(image) for image in group]
            for i, (image, scores) in enumerate(zip(group, self._scores(inputs)), start=first):
                label_map = np.empty(image.shape[:2], np.uint8 if len(self.classes) <= 256 else np.uint16)
                array = None if allocate is None else allocate(i, (len(self.classes), *image.shape[:2]))
                scores(lambda row, band, m=label_map, a=array: self._keep(row, band, m, a, advance))
                label_maps.append(label_map)
                arrays.append(array)
        return [Segmentation(m, self.classes, image, a) for image, m, a in zip(images, label_maps, arrays)]

    def _to_input(self, image: np.ndarray) -> dict:
        """What the network takes of an image (H, W, 3), RGB."""
        height, width = image.shape[:2]
        channels = self.cfg.INPUT.FORMAT
        if channels == "BGR":
            image = image[:, :, ::-1]
        elif channels != "RGB":
            image = convert_PIL_to_numpy(Image.fromarray(image), channels)
        aug_input = T.AugInput(image)
        self._augmentations(aug_input)
        # Not made contiguous in this order: a large image would be there twice.
        tensor = torch.from_numpy(np.require(aug_input.image, requirements=["C", "W"])).permute(2, 0, 1)
        return {"image": tensor, "height": height, "width": width}

    def _scores(self, inputs: list[dict]) -> Iterator[Callable[[Callable[[int, Tensor], None]], None]]:
        """For each input a function that gives its scores away in bands, see MultiViewInference.in_bands."""
        if len(inputs) == 1 or not self._inference.is_plain(inputs[0]["image"]):
            for x in inputs:
                yield lambda use, x=x: self._inference.in_bands(x, use)
        else:
            for output in self._inference.batched(inputs):
                yield lambda use, output=output: use(0, output["sem_seg"])

    def _keep(
        self,
        first: int,
        scores: Tensor,
        label_map: np.ndarray,
        probabilities: np.ndarray | None,
        advance: Advance,
    ) -> None:
        rows = slice(first, first + scores.shape[1])
        label_map[rows] = argmax_classes(scores).cpu().numpy()
        if probabilities is not None:
            shares = scores if len(self._inference.views) > 1 else scores.float().softmax(0)
            probabilities[:, rows] = shares.cpu().numpy()
        advance(scores.shape[1] / len(label_map))


def _allocate(_: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.empty(shape, np.float32)


def _groups(images: Sequence[np.ndarray], batch: int) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
    """Neighbours of equal size, at most ``batch`` of them, each with the index of the first."""
    first = 0
    for i in range(1, len(images) + 1):
        if i == len(images) or i - first == batch or images[i].shape != images[first].shape:
            yield first, images[first:i]
            first = i


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}): expected cpu, or one that is there") from error

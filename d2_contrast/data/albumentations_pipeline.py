"""Augmentation by a pipeline of Albumentations."""

import os
import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import yaml
from detectron2.data import transforms as T

from ..extras import import_extra

KEY = "INPUT.ALBUMENTATIONS"
# A second mask of the pipeline, 1 everywhere: it is 0 where a transform has filled the masks by itself.
DRAWN = "drawn"
HOW_TO_WRITE = 'write it with albumentations.save(pipeline, file, data_format="yaml")'


class AlbumentationsPipeline(T.Augmentation):
    """A pipeline of Albumentations, for image and label map together.

    Its random numbers come from NumPy's generator, as those of other augmentations do. The transform that a call
    returns does nothing: boxes and the like are not moved.
    """

    def __init__(self, file: str, ignore_label: int = 255, image_format: str = "RGB"):
        """
        Args:
            file: the pipeline, as ``albumentations.save`` writes it, in yaml or json; may begin with ``~``.
            ignore_label: label of the areas that a transform fills, unless the file sets ``fill_mask`` to another
                label than 0.
            image_format: "RGB" or "BGR", of the images. The pipeline sees RGB.

        Raises:
            MissingExtraError: Albumentations is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file holds no pipeline, or one that mixes the labels of neighbouring pixels.
        """
        super().__init__()
        file = os.path.expanduser(file)  # no shell does it in a config
        self.file, self.ignore_label, self.image_format = file, ignore_label, image_format
        self.pipeline = _load(file)
        self.pipeline.add_targets({DRAWN: "mask"})
        for transform in _walk(self.pipeline):
            if getattr(transform, "mask_interpolation", None) not in (None, cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
                raise ValueError(
                    f"{KEY} {file}: mask_interpolation of {type(transform).__name__} is "
                    f"{transform.mask_interpolation}, which makes new labels between those of the classes: expected "
                    f"{cv2.INTER_NEAREST}, the nearest pixel"
                )

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        """Augment the image, uint8 (H, W, C), and the label map (H, W) of ``aug_input`` in place.

        Raises:
            ValueError: the pipeline does not fit them, or gives something else.
        """
        image, label = aug_input.image, aug_input.sem_seg
        # Generators that all transforms share: of one seed each of them would draw the numbers that the others draw.
        seed = np.random.randint(2**32, dtype=np.uint32)
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(int(seed)))
        # OpenCV moves labels of one byte, or as floats.
        mask = label if label.dtype == np.uint8 else label.astype(np.float32)
        try:
            out = self.pipeline(
                image=self._switch_order(image), mask=np.array(mask), **{DRAWN: np.ones(mask.shape, np.uint8)}
            )
        except Exception as error:
            raise ValueError(
                f"{KEY} {self.file} cannot be applied to an image of {image.shape[0]} x {image.shape[1]} pixels "
                f"(height x width): {_in_one_line(error)}"
            ) from error
        new_image, new_mask = out["image"], out["mask"]
        if (
            not isinstance(new_image, np.ndarray)
            or new_image.dtype != np.uint8
            or new_image.shape[2:] != image.shape[2:]
        ):
            raise ValueError(
                f"{KEY} {self.file} makes {_kind(new_image)} of an image: expected an array of uint8 with "
                f"{image.shape[-1]} channels, so no Normalize, ToFloat or ToTensorV2, since the network normalises by "
                "MODEL.PIXEL_MEAN and PIXEL_STD"
            )
        if new_mask.shape != new_image.shape[:2]:
            raise ValueError(
                f"{KEY} {self.file} gives an image of {new_image.shape[:2]} pixels with a label map of "
                f"{new_mask.shape}: expected one size (height, width)"
            )
        new_label = new_mask.astype(label.dtype)
        new_label[out[DRAWN] == 0] = self.ignore_label
        aug_input.image, aug_input.sem_seg = self._switch_order(new_image), new_label
        return T.NoOpTransform()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.file}: {self.pipeline})"

    def _switch_order(self, image: np.ndarray) -> np.ndarray:
        """From the order of the images to RGB, or back; a copy."""
        return np.array(image[..., ::-1] if self.image_format == "BGR" else image)


def _load(file: str) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # without it the import asks PyPI for the newest version
    albumentations = import_extra("albumentations", "albumentations")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{KEY} {file}: there is no such file; {HOW_TO_WRITE}")
    try:
        return albumentations.load(file, data_format="yaml")  # of which json is a part
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{KEY} {file} holds no pipeline that albumentations {albumentations.__version__} can build "
            f"({_in_one_line(error)}): {HOW_TO_WRITE}"
        ) from error


def _walk(transform: Any) -> Iterator[Any]:
    """A transform, and those that it is made of."""
    yield transform
    for part in getattr(transform, "transforms", ()):
        yield from _walk(part)


def _kind(image: Any) -> str:
    return f"a {type(image).__name__} of {getattr(image, 'dtype', 'no dtype')} with shape {tuple(image.shape)}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

"""Augmentations for semantic segmentation that Detectron2 does not have, in its own framework."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image, ImageFilter

from .albumentations_pipeline import AlbumentationsPipeline


class ResizeCropTransform(T.Transform):
    """Resize a picture and cut a window out of the result, computing the window only.

    Gives what a resize of the whole followed by a crop would give (images: Pillow's bilinear filter,
    labels: nearest neighbour), in time that depends on the window alone. Parts of the window that lie
    outside the picture are padding.

    Args:
        size: height and width of the picture that comes in, pixels.
        new_size: height and width that it is resized to.
        window: top, left, height and width in the resized picture; top and left may be negative.
        image_fill, label_fill: values of the padding.
    """

    def __init__(
        self,
        size: tuple[int, int],
        new_size: tuple[int, int],
        window: tuple[int, int, int, int],
        image_fill: int = 0,
        label_fill: int = 255,
    ):
        super().__init__()
        top, left, height, width = window
        self.scale = (size[0] / new_size[0], size[1] / new_size[1])
        self.origin = (top, left)
        self.out_size = (height, width)
        # The part of the window that shows the picture: rows and columns of the resized picture.
        self.rows = (max(top, 0), min(top + height, new_size[0]))
        self.cols = (max(left, 0), min(left + width, new_size[1]))
        self.size, self.image_fill, self.label_fill = size, image_fill, label_fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        low, high, taps = [], [], []
        for (first, last), scale, limit in zip((self.rows, self.cols), self.scale, self.size, strict=True):
            low.append(first * scale)
            high.append(last * scale)
            reach = max(scale, 1.0) + 1.0  # how far the filter looks past the window
            taps.append(slice(max(int(low[-1] - reach), 0), min(int(high[-1] + reach) + 1, limit)))
        y, x = taps
        box = (low[1] - x.start, low[0] - y.start, high[1] - x.start, high[0] - y.start)
        shape = (self.cols[1] - self.cols[0], self.rows[1] - self.rows[0])
        part = Image.fromarray(np.ascontiguousarray(img[y, x]))
        if shape != part.size or box != (0, 0, *part.size):
            part = part.resize(shape, Image.Resampling.BILINEAR, box=box)
        return self._pad(np.array(part), self.image_fill)  # a copy: Pillow's own array is read-only

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        rows, cols = (
            ((np.arange(*span) + 0.5) * scale).astype(np.int64)
            for span, scale in zip((self.rows, self.cols), self.scale, strict=True)
        )
        return self._pad(segmentation.take(rows, axis=0).take(cols, axis=1), self.label_fill)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords / np.array(self.scale[::-1]) - np.array(self.origin[::-1])

    def _pad(self, part: np.ndarray, fill: int) -> np.ndarray:
        if part.shape[:2] == self.out_size:
            return part
        out = np.full(self.out_size + part.shape[2:], fill, dtype=part.dtype)
        top, left = self.rows[0] - self.origin[0], self.cols[0] - self.origin[1]
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out


class RandomScaleCrop(T.Augmentation):
    """Random scale and aspect ratio, then a random crop in which no class takes too large a share.

    Args:
        scale_range: the scale is uniform between these two; 1 keeps the native size, or the one that
            ``short_edge`` sets.
        aspect_range: the width is multiplied and the height divided by the root of a number between these.
        crop_size: height and width of the result; a smaller picture is padded, at a random place. None
            keeps the whole picture.
        max_class_share: of the pixels that are not ignored, no class may take more than this share. After
            10 tries the last crop is taken.
        short_edge, max_size: before the scale, bring the shorter side to ``short_edge`` pixels (0: native
            size) unless the longer one would exceed ``max_size``.
        ignore_label: label of the padding.
    """

    TRIES = 10

    def __init__(
        self,
        scale_range: tuple[float, float] = (1.0, 1.0),
        aspect_range: tuple[float, float] = (1.0, 1.0),
        crop_size: tuple[int, int] | None = None,
        max_class_share: float = 1.0,
        short_edge: Sequence[int] = (0,),
        max_size: int = 10**9,
        ignore_label: int = 255,
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> ResizeCropTransform:
        size = image.shape[:2]
        height, width = size
        if edge := np.random.choice(self.short_edge):
            height, width = T.ResizeShortestEdge.get_output_shape(*size, edge, self.max_size)
        scale = np.random.uniform(*self.scale_range)
        aspect = np.sqrt(np.random.uniform(*self.aspect_range))
        new_size = (max(1, round(height * scale / aspect)), max(1, round(width * scale * aspect)))
        crop = self.crop_size or new_size
        for _ in range(self.TRIES):
            top, left = (
                # Without room to move the crop in the picture, the picture moves in the crop.
                np.random.randint(min(0, n - c), max(0, n - c) + 1)
                for n, c in zip(new_size, crop, strict=True)
            )
            transform = ResizeCropTransform(size, new_size, (top, left, *crop), label_fill=self.ignore_label)
            if self.max_class_share >= 1.0 or self._is_mixed(transform.apply_segmentation(sem_seg)):
                break
        return transform

    def _is_mixed(self, label: np.ndarray) -> bool:
        if label.dtype == np.uint8:  # several times as fast as bincount
            counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()
        else:
            counts = np.bincount(label.ravel(), minlength=self.ignore_label + 1)
        counts[self.ignore_label] = 0
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.max_class_share * counts.sum())


class RandomColorJitter(T.Augmentation):
    """Random brightness, contrast, saturation and hue.

    The first three are products of what Detectron2's ``RandomBrightness``, ``RandomContrast`` and
    ``RandomSaturation`` do, in this order and without rounding in between, so one pass does it. Hue turns
    the colour circle of HSV.

    Args:
        brightness, contrast, saturation: factors are uniform between these two; 1 changes nothing.
        hue: largest turn, as a fraction of the circle.
        image_format: "RGB" or "BGR".
    """

    def __init__(
        self,
        brightness: tuple[float, float] = (1.0, 1.0),
        contrast: tuple[float, float] = (1.0, 1.0),
        saturation: tuple[float, float] = (1.0, 1.0),
        hue: float = 0.0,
        image_format: str = "RGB",
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        brightness, contrast, saturation = (
            np.random.uniform(*r) for r in (self.brightness, self.contrast, self.saturation)
        )
        turn = round(256 * np.random.uniform(-self.hue, self.hue)) % 256
        rgb = self.image_format == "RGB"
        luma = np.array([0.299, 0.587, 0.114])[:: 1 if rgb else -1]

        matrix = np.empty((3, 4))
        to_gray = np.tile(luma, (3, 1))
        matrix[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * to_gray)
        # Contrast moves colours away from the mean; saturation leaves that grey where it is.
        mean = np.mean(cv2.mean(image)[:3])
        matrix[:, 3] = (1 - contrast) * brightness * mean

        def jitter(img: np.ndarray) -> np.ndarray:
            img = cv2.transform(img, matrix)  # rounds and clips to uint8
            if turn:
                img = cv2.cvtColor(img, cv2.COLOR_RGB2HSV_FULL if rgb else cv2.COLOR_BGR2HSV_FULL)
                img[..., 0] += np.uint8(turn)  # wraps around
                img = cv2.cvtColor(img, cv2.COLOR_HSV2RGB_FULL if rgb else cv2.COLOR_HSV2BGR_FULL)
            return img

        return T.ColorTransform(jitter)


class RandomBlur(T.Augmentation):
    """Gaussian blur with a probability, of a radius (standard deviation, pixels) from a range of integers."""

    def __init__(self, prob: float, radius: tuple[int, int]):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        blur = ImageFilter.GaussianBlur(np.random.randint(self.radius[0], self.radius[1] + 1))
        return T.PILColorTransform(lambda img: img.filter(blur))


def build_train_augmentation(cfg: CfgNode, ignore_label: int) -> list[T.Augmentation]:
    """The augmentations that the ``INPUT`` section of a config asks for."""
    cfg = cfg.INPUT
    augmentations: list[T.Augmentation] = [
        RandomScaleCrop(
            tuple(cfg.SCALE_RANGE),
            tuple(cfg.ASPECT_RANGE),
            tuple(cfg.CROP.SIZE) if cfg.CROP.ENABLED else None,
            cfg.CROP.SINGLE_CATEGORY_MAX_AREA,
            tuple(cfg.MIN_SIZE_TRAIN),
            cfg.MAX_SIZE_TRAIN,
            ignore_label,
        )
    ]
    if cfg.RANDOM_FLIP != "none":
        horizontal = cfg.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    jitter = cfg.COLOR_JITTER
    if jitter.ENABLED:
        augmentations.append(
            RandomColorJitter(
                tuple(jitter.BRIGHTNESS),
                tuple(jitter.CONTRAST),
                tuple(jitter.SATURATION),
                jitter.HUE,
                cfg.FORMAT,
            )
        )
    if cfg.BLUR.PROB > 0:
        augmentations.append(RandomBlur(cfg.BLUR.PROB, tuple(cfg.BLUR.RADIUS)))
    if cfg.ALBUMENTATIONS:
        augmentations.append(AlbumentationsPipeline(cfg.ALBUMENTATIONS, ignore_label, cfg.FORMAT))
    return augmentations

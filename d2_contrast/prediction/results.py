"""Writing predictions to a folder: a folder below it for each kind of result."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np

from ..data import Classes
from ..data.files import write_picture
from .legend import draw_legend, legend_font_size
from .segmentation import Segmentation, draw_overlay
from .video import VideoWriter

PARTIAL = ".partial.npy"
# Longest side of a JPEG file, pixels.
JPEG_LIMIT = 65000
# Entries in the legend of a video, which has one size throughout.
VIDEO_ENTRIES = 24


class ResultWriter:
    """Writes what is asked for of each image or frame.

    ====================  =====================================================================
    ``labels/``           label maps, PNG files of one channel
    ``color/``            label maps in the colours of the classes: PNG files, or a video
    ``overlay/``          the same over the image, with a legend: JPEG files, or a video
    ``probabilities/``    arrays (K, H, W) of NumPy, float16
    ====================  =====================================================================
    """

    def __init__(self, folder: str, kinds: Sequence[str], ids: Literal["train", "dataset"] = "train"):
        """
        Args:
            folder: need not exist.
            kinds: names of those above.
            ids: what label maps hold, see :meth:`Segmentation.ids`.
        """
        self.folder, self.kinds, self.ids = folder, kinds, ids

    def path(self, kind: str, name: str, suffix: str) -> str:
        """The path of a result, in a folder that exists then."""
        path = os.path.join(self.folder, kind, name + suffix)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def allocate(self, names: Sequence[str]) -> Callable[[int, tuple[int, int, int]], np.ndarray] | None:
        """Gives memory-mapped files that take the probabilities of images while they are predicted."""
        if "probabilities" not in self.kinds:
            return None
        return lambda i, shape: np.lib.format.open_memmap(
            self.path("probabilities", names[i], PARTIAL), "w+", np.float16, shape
        )

    def discard(self, names: Sequence[str]) -> None:
        """Remove what :meth:`allocate` made for images that could not be predicted."""
        for name in names:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(self.folder, "probabilities", name + PARTIAL))

    def write(self, name: str, result: Segmentation) -> None:
        """Write the results of an image.

        Raises:
            OSError: a file cannot be written.
        """
        self._write_arrays(name, result)
        if "color" in self.kinds:
            write_picture(self.path("color", name, ".png"), result.color_map())
        if "overlay" in self.kinds:
            picture = draw_overlay(result, legend=result.legend())
            suffix = ".jpg" if max(picture.shape) <= JPEG_LIMIT else ".png"
            write_picture(self.path("overlay", name, suffix), picture)

    def _write_arrays(self, name: str, result: Segmentation) -> None:
        if "labels" in self.kinds:
            result.save(self.path("labels", name, ".png"), self.ids)
        if isinstance(result.probabilities, np.memmap):
            result.probabilities.flush()
            os.replace(result.probabilities.filename, self.path("probabilities", name, ".npy"))


class VideoResults:
    """Writes what is asked for of the frames of a video: colours and overlays as videos of the same speed, label maps
    and probabilities as files ``000000``, ``000001``, ... in a folder that is named as the video.
    """

    def __init__(self, writer: ResultWriter, name: str, fps: float):
        self.writer, self.name = writer, name
        self.videos = {
            kind: VideoWriter(os.path.join(writer.folder, kind, name), fps)
            for kind in ("color", "overlay")
            if kind in writer.kinds
        }
        self.frames = 0
        self._legend: np.ndarray | None = None

    def frame_name(self, index: int) -> str:
        """What the results of a frame are called."""
        return os.path.join(self.name, f"{index:06d}")

    def write(self, result: Segmentation) -> None:
        """Write the results of the next frame.

        Raises:
            OSError: a file cannot be written.
        """
        self.writer._write_arrays(self.frame_name(self.frames), result)
        if "color" in self.videos:
            self.videos["color"].write(result.color_map())
        if "overlay" in self.videos:
            self.videos["overlay"].write(draw_overlay(result, legend=self._draw_legend(result)))
        self.frames += 1

    def close(self, keep: bool = True) -> None:
        """Finish the videos; with ``keep`` False, remove them."""
        for video in self.videos.values():
            video.close(keep)

    def _draw_legend(self, result: Segmentation) -> np.ndarray:
        """A legend of the same size for all frames: all classes, or of many those that take most of the frame."""
        classes: Classes = result.classes
        height, width = result.label_map.shape
        font_size = legend_font_size(height, width)
        if len(classes) <= VIDEO_ENTRIES:
            if self._legend is None:
                self._legend = draw_legend(classes, range(len(classes)), width, font_size)
            return self._legend
        counts = np.bincount(result.label_map.ravel(), minlength=len(classes))
        largest = np.argsort(-counts, kind="stable")[:VIDEO_ENTRIES]
        shown = sorted(i for i in largest.tolist() if counts[i])
        longest = sorted(range(len(classes)), key=lambda i: len(classes.names[i]))[-VIDEO_ENTRIES:]
        return draw_legend(classes, shown, width, font_size, room_for=longest)

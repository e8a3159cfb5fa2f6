"""Reading videos and cameras, and writing videos."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np

from ..data.files import is_utf8

# Frames a second where a video or camera does not say.
DEFAULT_FPS = 25.0
# Codecs, with the suffix of a file that takes them: OpenCV's builds differ in what they have.
CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))


class VideoReader:
    """The frames of a video or camera, upright.

    Attributes:
        fps: frames a second.
        frames: how many there are by the header, which may be a little wrong; None for a camera, or if it is unknown.
    """

    def __init__(self, source: str | int):
        """
        Args:
            source: path of a video, or the number of a camera.

        Raises:
            OSError: it cannot be opened, or its path is not UTF-8.
        """
        what = f"camera {source}" if isinstance(source, int) else source
        _check_name(what)
        with _quiet():
            self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            hint = "there is no such camera" if isinstance(source, int) else "it is damaged or no video"
            raise OSError(f"{what}: cannot read this, {hint}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        count = 0 if isinstance(source, int) else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = count if count > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames that are left, (H, W, 3) uint8, RGB."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


def _check_name(path: str) -> None:
    """OpenCV 5.0.0 ends the process where a path is not UTF-8."""
    if not is_utf8(path):
        raise OSError(f"{path}: this path is not UTF-8, as OpenCV expects of videos: rename the file or folder")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV and FFmpeg from writing to stderr what an error says in one sentence."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    logs = cv2.utils.logging
    level = logs.getLogLevel()
    logs.setLogLevel(logs.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logs.setLogLevel(level)


class VideoWriter:
    """Writes a video, under its name only once it is complete. Its format is MP4, or AVI where OpenCV writes no MP4.

    Attributes:
        path: of the video; "" before the first frame.
    """

    def __init__(self, path: str, fps: float):
        """
        Args:
            path: of the video, without suffix.
            fps: frames a second.
        """
        self._name, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self.path = ""

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8, RGB; all of one size. Odd sizes get a row or column more, as codecs want it.

        Raises:
            OSError: the video cannot be written, or its path is not UTF-8.
        """
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._writer is None:
            self._open(frame.shape[1], frame.shape[0])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self, keep: bool = True) -> None:
        """Finish the video, and give it its name unless ``keep`` is False."""
        if self._writer is None:
            return
        self._writer.release()
        if keep and os.path.getsize(self._partial):
            os.replace(self._partial, self.path)
        else:
            with suppress(OSError):
                os.remove(self._partial)
        self._writer = None

    def _open(self, width: int, height: int) -> None:
        _check_name(self._name)
        os.makedirs(os.path.dirname(self._name) or ".", exist_ok=True)
        for codec, suffix in CODECS:
            self.path = self._name + suffix
            self._partial = f"{self._name}.{os.getpid()}.partial{suffix}"
            writer = cv2.VideoWriter(self._partial, cv2.VideoWriter.fourcc(*codec), self._fps, (width, height))
            if writer.isOpened():
                self._writer = writer
                return
        raise OSError(f"{self._name}: OpenCV cannot write videos here ({' or '.join(codec for codec, _ in CODECS)})")

"""What is to be predicted: images, folders, globs, videos and cameras, and the names of the results."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.datasets.register import IMAGE_SUFFIXES, list_files, list_images
from ..output import distinct_names
from ..predict import KINDS, RECORD

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


@dataclass(frozen=True)
class Source:
    """Something to predict.

    Attributes:
        kind: what it is.
        path: of the file; the number of a camera.
        name: of its results, without suffix; folders are kept in it, none leads upwards.
    """

    kind: Literal["image", "video", "camera"]
    path: str
    name: str


def find_sources(inputs: Sequence[str], output: str) -> list[Source]:
    """Find what is to be predicted.

    Paths are kept below the deepest folder that all inputs share: a folder that is named itself, the folder of a file,
    what a glob names before its first wildcard.

    Args:
        inputs: files, folders, globs, numbers of cameras.
        output: the folder of results. Those of earlier predictions, there or in another folder, are no images to
            predict, unless they are named themselves.

    Raises:
        FileNotFoundError: an input does not exist, a glob matches nothing, or a folder has no images.
        ValueError: a camera is not the only input.
    """
    cameras = [text for text in inputs if text.isdigit() and not os.path.exists(text)]
    if cameras:
        if len(inputs) > 1:
            raise ValueError(f"camera {cameras[0]} is one of {len(inputs)} inputs: expected it alone")
        return [Source("camera", cameras[0], f"camera{int(cameras[0])}")]
    roots, found = [], {}
    for text in inputs:
        root, paths = _find(os.path.expanduser(text))
        roots.append(root)
        found.update(dict.fromkeys(path for path in paths if not _is_result(path, root, output)))
    paths = list(found)
    if not paths:
        raise FileNotFoundError(f"{' '.join(inputs)}: all images are results of predictions: name others")
    base = os.path.commonpath(roots)
    relative = [Path(os.path.relpath(path, base)) for path in paths]
    names = distinct_names(relative)
    folders = {str(parent) for path in relative for parent in path.parents}
    sources = []
    for path, file, name in zip(paths, relative, names):
        is_video = os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES
        if is_video and name in folders:  # where the results of its frames would go
            name = str(file)
        sources.append(Source("video" if is_video else "image", path, name))
    return sources


def describe_left_out(folder: str) -> str:
    """A sentence on the files in a folder that are no images, "" if there are none."""
    others = [path for path in list_files(Path(folder), "**/*") if path.suffix.lower() not in IMAGE_SUFFIXES]
    suffixes = Counter(path.suffix.lower() or "without a suffix" for path in others if path.is_file())
    if not suffixes:
        return ""
    counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
    return f"{folder}: left out what is no image ({counts}); a video is predicted if it is named itself"


def _is_result(path: str, root: str, output: str) -> bool:
    """Whether an image is of the output, or of another prediction whose folder is the root or below it."""
    for kind in Path(path).parents:
        folder = kind.parent
        if kind.name in KINDS and (
            os.path.realpath(folder) == os.path.realpath(output)
            or ((folder / RECORD).is_file() and (folder == Path(root) or Path(root) in folder.parents))
        ):
            return True
    return False


def _find(text: str) -> tuple[str, list[str]]:
    """The absolute root and paths of an input."""
    path = os.path.abspath(text)
    if os.path.isdir(path):
        if not os.listdir(path):
            raise FileNotFoundError(f"{text} is empty: expected a folder of images")
        return path, [str(image) for image in list_images(Path(path), "**/*")]
    if os.path.exists(path):
        return os.path.dirname(path), [path]
    if not glob.has_magic(text):
        raise FileNotFoundError(f"{text}: no such image, video or folder")
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    matches = [os.path.abspath(match) for match in sorted(glob.glob(text, recursive=True)) if os.path.isfile(match)]
    paths = [match for match in matches if os.path.splitext(match)[1].lower() in known]
    if not paths:
        raise FileNotFoundError(
            f"{text}: of {len(matches)} files that match none is an image or a video ({', '.join(sorted(known))})"
        )
    root = text
    while glob.has_magic(root):
        root = os.path.dirname(root)
    return os.path.abspath(root), paths

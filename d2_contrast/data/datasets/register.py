"""Registration of datasets on disk: what all of them share."""

import glob
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..labels import detect_label_encoding

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

# An image and its label map; None where the benchmark keeps the labels to itself.
Pair = tuple[Path, Path | None]


def datasets_root() -> Path:
    """The folder that holds all datasets: ``DETECTRON2_DATASETS``, or ``datasets`` where it is not set."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_dataset(name: str, find: Callable[[Path], list[Pair]], **metadata) -> None:
    """Register a dataset with Detectron2.

    Args:
        name: of the dataset.
        find: gives its images and labels below :func:`datasets_root`, or raises FileNotFoundError.
        metadata: entries for the MetadataCatalog, see ``d2_contrast.data.labels`` for those about labels.
    """
    MetadataCatalog.get(name).set(**{"ignore_label": 255, "evaluator_type": "sem_seg", **metadata})
    DatasetCatalog.register(name, lambda: load_dataset(name, find))


def load_dataset(name: str, find: Callable[[Path], list[Pair]]) -> list[dict]:
    """Dataset dicts of a dataset; also finds its label encoding and notes it in the metadata.

    Raises:
        FileNotFoundError: the dataset is not there; the message says where it was looked for.
        ValueError: its labels fit no known encoding, or two images have the same label map.
    """
    root = datasets_root()
    try:
        pairs = find(root)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"dataset {name!r} is not there: {e}. DETECTRON2_DATASETS is the folder that holds it, now "
            f"{str(root.absolute())!r}"
        ) from e
    _check_pairs(name, pairs)
    labels = [str(label) for _, label in pairs if label is not None and label.exists()]
    encodings = MetadataCatalog.get(name).get("label_encodings", {})
    if labels and len(encodings) > 1:
        encoding = detect_label_encoding(labels, encodings)
        logger.info("Labels of %s are encoded as %s (%s)", name, encoding, labels[0])
        metadata = MetadataCatalog.get(name)
        # Metadata refuses to change an entry; this one depends on the files, which may have changed.
        vars(metadata).pop("label_encoding", None)
        metadata.label_encoding = encoding
    return [
        {
            "dataset_name": name,
            "file_name": str(image),
            "image_id": image.stem,
            **({} if label is None else {"sem_seg_file_name": str(label)}),
        }
        for image, label in pairs
    ]


def _check_pairs(name: str, pairs: list[Pair]) -> None:
    """Refuse an image that is there twice, and images that share a label map."""
    image_of: dict[str, Path] = {}
    seen: set[str] = set()
    for image, label in pairs:
        path = os.path.abspath(image)  # without "..", by which one file has several paths
        if path in seen:
            raise ValueError(f"dataset {name!r}: {image} is there twice: expected it once")
        seen.add(path)
        if label is not None and (other := image_of.setdefault(os.path.abspath(label), image)) != image:
            raise ValueError(
                f"dataset {name!r}: {other} and {image} would have the same label map, {label}: expected one image "
                "for each, move the other elsewhere"
            )


def first_existing(root: Path, candidates: Iterable[str]) -> Path:
    """The first of some folders below ``root`` that exists.

    Raises:
        FileNotFoundError: none does.
    """
    candidates = list(candidates)
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise FileNotFoundError(f"there is no folder {' or '.join(candidates)} in {root}")


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files in ``folder`` that match a glob pattern, sorted; "**" also leads into folders that are links.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(folder / name for name in glob.glob(pattern, root_dir=folder, recursive=True))
    if not files:
        raise FileNotFoundError(f"no file matches {folder / pattern}")
    return files


def list_images(folder: Path, pattern: str) -> list[Path]:
    """The images among the files of :func:`list_files`, told by their suffix.

    Raises:
        FileNotFoundError: ``folder`` does not exist, is a file, or has no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is a file, not a folder" if folder.exists() else f"there is no folder {folder}"
        )
    images = [f for f in list_files(folder, pattern) if f.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images

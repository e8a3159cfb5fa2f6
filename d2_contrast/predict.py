"""Segment images, folders of images, videos or a camera with a trained network.

d2-contrast predict --weights output/shapes/uper_r18_contrast --input street.jpg --output predictions
d2-contrast predict --weights model_best.safetensors --input 'photos/**/*.jpg' drive.mp4 --output predictions
d2-contrast predict --weights ... --input aerial.tif --output predictions --window 512
"""

# Heavy imports come where they are needed, so that --help answers at once.
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from .cli import given_path, verb_parser
from .errors import explain, in_plain_words

if TYPE_CHECKING:
    import numpy as np

    from .evaluation.background import Background
    from .prediction import Segmentation, Segmentor
    from .prediction.results import ResultWriter
    from .prediction.segmentor import Advance
    from .prediction.sources import Source

# What can be written, each kind into a folder of this name.
KINDS = ("labels", "color", "overlay", "probabilities")
DEFAULTS = "labels and overlay of images, overlay of videos"
RECORD = "predict.json"
LONGEST_NAME = 230  # bytes, which leaves room for the suffixes of results that are being written
# Of images, which are predicted in parts.
BAR = "{percentage:3.0f}%|{bar}| {n:.1f} of {total} images [{elapsed}, {remaining} left]"
# Number of values of an image from which it is predicted alone.
LARGE = 1 << 27
OUT_OF_MEMORY = re.compile("out ?of ?memory|MemoryError|can't allocate memory", re.IGNORECASE)


def build_parser() -> ArgumentParser:
    """The options of the command line."""
    parser = verb_parser("predict", __doc__)
    add = parser.add_argument
    add("--weights", required=True, help="folder of a run, for its last checkpoint, or a file of weights")
    add("--input", required=True, nargs="+", help="images, folders, globs, videos, or the number of a camera")
    add("--output", required=True, type=given_path, help="folder for the results; paths of images are kept below it")
    add("--config-file", default="", help="default: config.yaml beside the weights, or the config in them")
    add("--save", nargs="+", choices=KINDS, metavar="KIND", help=f"some of {', '.join(KINDS)}; default: {DEFAULTS}")
    add(
        "--ids",
        choices=("train", "dataset"),
        default="train",
        help="ids in label maps: train ids (default), or those of the dataset's own label files",
    )
    add(
        "--window",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="predict in windows of this height (and width) at a stride of two thirds, for large images",
    )
    add("--batch", type=int, default=1, help="images of equal size, or windows, at once (default: 1)")
    add("--amp", action="store_true", help="mixed precision, which is faster on GPUs")
    add("--device", default="", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    add("--overwrite", action="store_true", help="replace files of the same names in a folder of predictions")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys to override, at the end, behind --")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict what the command line names.

    Returns:
        The exit code: 0, or 1 if an input could not be predicted.
    """
    args = build_parser().parse_args(argv)
    with in_plain_words():
        return predict(args)


def predict(args: Namespace) -> int:
    """Predict all inputs, see :func:`main`.

    Raises:
        OSError: there is no input, no such weights, or a result cannot be written.
        KeyError, ValueError: an option, the config or the weights are invalid, or the output folder is in use.
    """
    from .prediction.sources import describe_left_out, find_sources

    sources = find_sources(args.input, args.output)
    for folder in filter(os.path.isdir, map(os.path.expanduser, args.input)):
        if left_out := describe_left_out(folder):
            print(left_out, file=sys.stderr)
    _check_output(args.output, args.overwrite)
    segment = _load(args)
    print(segment, file=sys.stderr)
    _write_record(args, segment)
    images = [source for source in sources if source.kind == "image"]
    failures = _predict_images(segment, images, args) if images else 0
    for source in sources:
        if source.kind != "image":
            failures += _predict_video(segment, source, args)
    done = len(sources) - failures
    print(f"{args.output}: results of {done} of {len(sources)} inputs")
    if failures:
        print(f"{failures} of {len(sources)} inputs could not be predicted, see above", file=sys.stderr)
    return 1 if failures else 0


def _predict_images(segment: "Segmentor", sources: Sequence["Source"], args: Namespace) -> int:
    """Predict images and write the results; returns how many could not be predicted."""
    from tqdm import tqdm

    from .evaluation.background import Background
    from .prediction.results import ResultWriter

    writer = ResultWriter(args.output, args.save or ("labels", "overlay"), args.ids)
    background = Background()
    failures = 0
    with tqdm(total=len(sources), bar_format=BAR, disable=None) as bar:
        for first in range(0, len(sources), segment.batch):
            group = sources[first : first + segment.batch]
            failures += _predict_group(segment, group, writer, background, bar.update)
            bar.update(first + len(group) - bar.n)  # those that failed
        background.finish()
    return failures


def _predict_group(
    segment: "Segmentor",
    sources: Sequence["Source"],
    writer: "ResultWriter",
    background: "Background",
    advance: "Advance",
) -> int:
    """Predict some images together, and begin to write the results; returns how many could not be predicted."""
    arrays, failures = {}, 0
    for source in sources:
        if len(os.fsencode(os.path.basename(source.name))) > LONGEST_NAME:
            failures += _complain(f"{source.path}: expected a name of at most {LONGEST_NAME} bytes, for its results")
            continue
        try:
            arrays[source] = segment.read(source.path)
        except (OSError, ValueError) as error:
            failures += _complain(explain(error) or str(error))
    results = _segment(segment, arrays, writer, advance)
    background.start(_write_all, writer, results)
    if sum(array.size for array in arrays.values()) > LARGE:
        background.finish()  # so that no more than one large image is in memory
    return failures + len(arrays) - len(results)


def _segment(
    segment: "Segmentor", arrays: Mapping["Source", "np.ndarray"], writer: "ResultWriter", advance: "Advance"
) -> "dict[str, Segmentation]":
    """Results by name, but for images that the network refuses, or for which there is not enough memory."""
    names = [source.name for source in arrays]
    try:
        return dict(zip(names, segment.segment_arrays(list(arrays.values()), writer.allocate(names), advance)))
    except (MemoryError, RuntimeError, ValueError) as error:
        problem = _explain_refusal(error)
    writer.discard(names)
    if len(arrays) > 1:
        single = [_segment(segment, {source: array}, writer, advance) for source, array in arrays.items()]
        return {name: result for results in single for name, result in results.items()}
    for source, array in arrays.items():
        _complain(f"{source.path}, {array.shape[0]} x {array.shape[1]} pixels: {problem}")
    return {}


def _explain_refusal(error: Exception) -> str:
    """Why an image cannot be predicted, where others may be; other errors are raised again."""
    if OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
        return "there is not enough memory for it at once: give --window 512, or a smaller window"
    if isinstance(error, ValueError):
        return str(error)
    raise error


def _write_all(writer: "ResultWriter", results: "Mapping[str, Segmentation]") -> None:
    for name, result in results.items():
        writer.write(name, result)


def _predict_video(segment: "Segmentor", source: "Source", args: Namespace) -> bool:
    """Predict a video, or a camera until Ctrl-C, and write the results; returns whether that failed."""
    from tqdm import tqdm

    from .prediction.results import ResultWriter, VideoResults
    from .prediction.video import VideoReader

    is_camera = source.kind == "camera"
    try:
        reader = VideoReader(int(source.path) if is_camera else source.path)
    except OSError as error:
        return _complain(str(error))
    writer = ResultWriter(args.output, args.save or ("overlay",), args.ids)
    results = VideoResults(writer, source.name, reader.fps)
    if is_camera:
        print("Ctrl-C ends the recording", file=sys.stderr)
    finished, problem = False, ""
    try:
        with tqdm(total=reader.frames, unit="frame", disable=None, desc=os.path.basename(source.path)) as bar:
            for frames in _chunks(reader, 1 if is_camera else segment.batch):
                names = [results.frame_name(results.frames + i) for i in range(len(frames))]
                for result in segment.segment_arrays(frames, writer.allocate(names)):
                    results.write(result)
                bar.update(len(frames))
        finished = True
    except KeyboardInterrupt:
        if not is_camera:
            raise
        finished = True
    except (MemoryError, RuntimeError, ValueError) as error:
        problem = _explain_refusal(error)
    finally:
        reader.close()
        results.close(keep=finished)
    if problem:
        return _complain(f"{source.path}: {problem}")
    if not results.frames or (reader.frames and results.frames < 0.99 * reader.frames):
        return _complain(
            f"{source.path}: {results.frames} of {reader.frames or 'its'} frames can be read, it is damaged"
        )
    return False


def _chunks(frames: Iterable, size: int) -> Iterator[list]:
    iterator = iter(frames)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _complain(sentence: str) -> bool:
    """Say what is wrong with an input, without breaking a progress bar. Returns True, which counts as a failure."""
    from tqdm import tqdm

    tqdm.write(sentence, file=sys.stderr)
    return True


def _load(args: Namespace) -> "Segmentor":
    import torch

    from .modeling.precision import has_native_bfloat16
    from .prediction import Segmentor

    overrides = []
    if args.window:
        if len(args.window) > 2 or min(args.window) < 1:
            raise ValueError(f"--window is {args.window}: expected a height, or height and width, of 1 pixel or more")
        size = [args.window[0], args.window[-1]]
        stride = [max(1, round(2 * side / 3)) for side in size]
        overrides += ["TEST.SLIDING_WINDOW.ENABLED", "True"]
        overrides += ["TEST.SLIDING_WINDOW.SIZE", str(size), "TEST.SLIDING_WINDOW.STRIDE", str(stride)]
    if args.amp:
        overrides += ["TEST.AMP.ENABLED", "True"]
        wanted = args.device or dict(zip(args.opts[::2], args.opts[1::2])).get("MODEL.DEVICE")
        if wanted == "cpu" or not torch.cuda.is_available():
            overrides += ["SOLVER.AMP.DTYPE", "bfloat16"]
            if not has_native_bfloat16():
                print("--amp makes this slower: this processor does not compute in bfloat16", file=sys.stderr)
    return Segmentor.load(args.weights, args.config_file, [*overrides, *args.opts], args.device, args.batch)


def _check_output(folder: str, overwrite: bool) -> None:
    """Raise ValueError if results cannot go into a folder."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--output {folder} is a file: expected a folder")
    if not os.path.isdir(folder) or not set(os.listdir(folder)) - {RECORD}:
        return
    if not os.path.isfile(os.path.join(folder, RECORD)):
        raise ValueError(f"--output {folder} holds files that are no predictions: name another folder")
    if not overwrite:
        raise ValueError(
            f"--output {folder} holds predictions already: replace them by --overwrite, or name another folder"
        )


def _write_record(args: Namespace, segment: "Segmentor") -> None:
    """Write beside the results what made them, and what the ids in label maps mean."""
    from .tables import write_json

    classes = segment.classes
    entries = [
        {"id": i if args.ids == "train" else value, "name": name, "color": color}
        for i, (value, name, color) in enumerate(zip(classes.ids, classes.names, classes.colors))
    ]
    options = {key: value for key, value in vars(args).items() if value and key not in ("overwrite", "output")}
    write_json(os.path.join(args.output, RECORD), {**options, "weights": segment.cfg.MODEL.WEIGHTS, "classes": entries})


if __name__ == "__main__":
    sys.exit(main())

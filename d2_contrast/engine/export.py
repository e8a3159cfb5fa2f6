"""Networks as files for other runtimes, compared with what they were made from."""

import inspect
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.fx.experimental import _config

from .. import __version__
from ..extras import import_extra
from ..modeling.exportable import ExportableSegmentor
from ..modeling.weights import innermost_backbone
from ..output import write_whole
from .trained import read_classes

# Largest difference from PyTorch, as a share of the largest logit.
TOLERANCE = 1e-4
OPSET = 17
# For torch.export: conditions on sizes, such as that there is more than one window, would restrict the sizes of images.
# Those that hold for all sizes, but that torch cannot prove, are checked when the network runs.
# In smaller images the map of stride 32 is a single position, which torch takes for another case.
SMALLEST_SIDE = 33  # pixels
ASSERTS, OBLIVIOUS = "prefer_deferred_runtime_asserts_over_guards", "backed_size_oblivious"
INPUT, LOGITS, LABELS = "images", "logits", "labels"
# What a file of torch holds beside the network.
METADATA = "metadata.json"

Size = tuple[int, int, int]


class InexactExportError(RuntimeError):
    """A network cannot be written in a format, or does not give there what it gives in PyTorch."""


@dataclass(frozen=True)
class Comparison:
    """What a written network gives, against PyTorch.

    Attributes:
        size: number, height and width of the images.
        difference: the largest one of two logits; with label maps the largest one between the logits of two classes
            that were chosen.
        largest: the largest absolute logit.
    """

    size: Size
    difference: float
    largest: float

    @property
    def is_exact(self) -> bool:
        return self.difference <= TOLERANCE * self.largest  # not so if it is NaN

    def __str__(self) -> str:
        differs = f"differs from PyTorch by {self.difference:.1e}, with logits up to {self.largest:.3g}"
        return f"{_describe_size(self.size)}: {differs}"


def export_network(
    cfg: CfgNode, model: nn.Module, path: str | os.PathLike, kind: str, *, argmax: bool = False
) -> list[Comparison]:
    """Write a segmentor as a file that takes images of any number, height and width, and compare it.

    Args:
        cfg: its config.
        model: the segmentor, on the CPU and in evaluation mode.
        path: of the file.
        kind: a key of :data:`FORMATS`.
        argmax: write a network that gives label maps instead of logits.

    Returns:
        The comparisons, first at the size that was traced.

    Raises:
        InexactExportError: the network cannot be traced, or differs; there is no file then.
        MissingExtraError: a package is missing.
        OSError: the file cannot be written.
        ValueError: the model is no segmentor, or this version of torch does not have the format.
    """
    write, read = FORMATS[kind]
    check_installed(kind)
    network = ExportableSegmentor(model, argmax)
    sizes = trial_sizes(model, network.multiple, SMALLEST_SIDE if kind == "torch.export" else 1)
    os.makedirs(os.path.dirname(os.fspath(path)) or ".", exist_ok=True)
    # The file has another name inside this block, and is removed if an error leaves the block.
    with write_whole(path) as file, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of what the comparison finds out
        try:
            try:
                write(network, make_images(model, sizes[0]), file, describe(cfg, network))
            except OSError:
                raise
            except Exception as error:  # tracers fail in many ways
                _predict(model, make_images(model, sizes[0]), sizes[0])  # perhaps it is the network that fails
                raise InexactExportError(
                    f"torch cannot trace this network for {kind}, try another format ({_first_line(error)})"
                ) from error
            file.flush()
            return compare(model, read(file.name), sizes, argmax=argmax)
        except InexactExportError as error:
            raise InexactExportError(f"{os.fspath(path)} is not written: {error}") from error


def check_installed(kind: str) -> None:
    """Check that a format can be written here.

    Raises:
        MissingExtraError: a package is missing.
        ValueError: this version of torch cannot write it.
    """
    if kind == "onnx":
        import_extra("onnx", "export")
        import_extra("onnxruntime", "export")
    if kind == "torch.export" and not (
        ASSERTS in inspect.signature(torch.export.export).parameters and hasattr(_config, OBLIVIOUS)
    ):
        raise ValueError(
            f"torch {torch.__version__} cannot export a network for images of any size by torch.export: take a newer "
            "one, or --format onnx or torchscript"
        )


def compare(
    model: nn.Module, run: Callable[[Tensor], Tensor], sizes: Sequence[Size], *, argmax: bool
) -> list[Comparison]:
    """Compare an exported network with the segmentor that it was made from.

    Args:
        model: the segmentor.
        run: maps images to what the exported network gives.
        sizes: of the images.
        argmax: it gives label maps.

    Raises:
        InexactExportError: it differs, or one of the two does not run.
    """
    comparisons = []
    for size in sizes:
        images = make_images(model, size)
        expected = _predict(model, images, size)
        try:
            given = run(images)
        except Exception as error:  # runtimes fail in many ways
            raise _does_not_run("what was written", size, error) from error
        shape = expected[:, 0].shape if argmax else expected.shape
        if given.shape != shape:
            raise InexactExportError(
                f"with {_describe_size(size)} its output is {tuple(given.shape)}, expected {tuple(shape)}"
            )
        difference = expected.amax(1) - expected.gather(1, given[:, None].long())[:, 0] if argmax else given - expected
        comparison = Comparison(size, float(difference.abs().max()), float(expected.abs().max()))
        if not comparison.is_exact:
            raise InexactExportError(f"it is not exact. {comparison}")
        comparisons.append(comparison)
    return comparisons


def _predict(model: nn.Module, images: Tensor, size: Size) -> Tensor:
    try:
        return torch.stack([output["sem_seg"] for output in model([{"image": image} for image in images])])
    except Exception as error:  # networks fail in many ways
        raise _does_not_run("the network itself", size, error) from error


def _does_not_run(who: str, size: Size, error: Exception) -> InexactExportError:
    return InexactExportError(f"{who} does not run with {_describe_size(size)} ({_first_line(error)})")


def trial_sizes(model: nn.Module, multiple: int, least: int = 1) -> list[Size]:
    """Numbers, heights and widths of images to try a network on: the one to trace, three others, the smallest.

    Args:
        model: the segmentor.
        multiple: sides of images are padded to multiples of this, pixels.
        least: no side is shorter than this, pixels.
    """
    side = max(multiple, 32)
    # So large that no map is a single position, or a single window of a Swin Transformer, which tracers could take for
    # a constant.
    steps = max(2, 256 // side)
    takes = getattr(innermost_backbone(model)[0], "sizes", None)
    smallest = max(least, takes.smallest - multiple + 1 if takes else 1)
    largest = takes and takes.largest or (steps + 3) * side
    sizes = [
        (2, steps * side - 21, (steps + 1) * side - 13),
        (1, (steps - 1) * side + 1, (steps + 2) * side),
        (3, side + 5, 3 * side + 1),
        (1, (steps + 1) * side, side),
        (1, smallest, smallest),
    ]
    return [(count, *(min(max(length, smallest), largest) for length in lengths)) for count, *lengths in sizes]


def make_images(model: nn.Module, size: Size) -> Tensor:
    """Images (N, C, H, W) of noise, always the same ones."""
    count, height, width = size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, len(model.pixel_mean), height, width), generator=generator).float()


def describe(cfg: CfgNode, network: ExportableSegmentor) -> dict[str, str]:
    """The metadata of a file, as texts; lists are JSON, the config is yaml."""
    order, channels = cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN)
    classes = read_classes(cfg)
    output = f"{LABELS}: train ids (batch, height, width), int64"
    if not network.argmax:
        output = f"{LOGITS}: (batch, classes, height, width), float32"
    return {
        "d2_contrast": __version__,
        "classes": json.dumps(classes.names),
        "colors": json.dumps(classes.colors),
        "ignore_label": str(classes.ignore_label),
        "input": f"{INPUT}: (batch, {channels}, height, width), float32 from 0 to 255, {order}",
        "output": output,
        "channels": order,
        "pixel_mean": json.dumps(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": json.dumps(cfg.MODEL.PIXEL_STD),
        "config": cfg.dump(),
    }


def _write_onnx(network: ExportableSegmentor, images: Tensor, file: IO[bytes], metadata: dict[str, str]) -> None:
    output = LABELS if network.argmax else LOGITS
    rows = 1 if network.argmax else 2
    buffer = io.BytesIO()
    axes = {
        INPUT: {0: "batch", 2: "height", 3: "width"},
        output: {0: "batch", rows: "height", rows + 1: "width"},
    }
    # The exporter of TorchScript: that of torch.export fixes some sizes, and does not exist in torch 2.4.
    with _quiet_stdout():
        torch.onnx.export(
            network,
            (images,),
            buffer,
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    onnx = import_extra("onnx", "export")
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "d2_contrast", __version__
    file.write(model.SerializeToString())


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Drop what compiled code prints: where torch's exporter fails, it prints the graph, thousands of lines."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _read_onnx(path: str) -> Callable[[Tensor], Tensor]:
    session = import_extra("onnxruntime", "export").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _write_torch_export(
    network: ExportableSegmentor, images: Tensor, file: IO[bytes], metadata: dict[str, str]
) -> None:
    height, width = (torch.export.Dim(name, min=SMALLEST_SIDE) for name in ("height", "width"))
    axes = {0: torch.export.Dim("batch"), 2: height, 3: width}
    with _config.patch({OBLIVIOUS: True}):  # type: ignore[attr-defined]
        program = torch.export.export(network, (images,), dynamic_shapes=(axes,), strict=False, **{ASSERTS: True})
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def _read_torch_export(path: str) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_torchscript(network: ExportableSegmentor, images: Tensor, file: IO[bytes], metadata: dict[str, str]) -> None:
    buffer = io.BytesIO()
    torch.jit.save(
        torch.jit.trace(network, images, check_trace=False), buffer, _extra_files={METADATA: json.dumps(metadata)}
    )
    file.write(buffer.getvalue())


def _read_torchscript(path: str) -> Callable[[Tensor], Tensor]:
    return torch.jit.load(path)


# How each format is written and read back.
FORMATS: dict[str, tuple[Callable, Callable]] = {
    "onnx": (_write_onnx, _read_onnx),
    "torch.export": (_write_torch_export, _read_torch_export),
    "torchscript": (_write_torchscript, _read_torchscript),
}


def _describe_size(size: Size) -> str:
    count, height, width = size
    return f"{count} {'image' if count == 1 else 'images'} of {height} x {width} pixels"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"

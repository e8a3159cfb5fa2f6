"""Print what a maintainer needs to know of a machine, for the report of a fault.

d2-contrast env
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from . import __version__
from .cli import verb_parser
from .errors import in_plain_words

# Imported one by one, so that one that is missing or broken is named and the rest is still told.
MODULES = ("torch", "torchvision", "detectron2", "timm", "numpy", "cv2")
# Only looked up, not imported.
PACKAGES = (
    "fvcore",
    "Pillow",
    "pycocotools",
    "tensorboard",
    "matplotlib",
    "scikit-learn",
    "scipy",
    "cityscapesscripts",
    "segmentation-models-pytorch",
)
DATASETS = "DETECTRON2_DATASETS"  # the longest name of a line
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe_environment() -> Iterator[tuple[str, str]]:
    """Yield versions, machine and settings, each with its title, as soon as it is known."""
    package = Path(__file__).resolve().parent
    yield "d2_contrast", f"{__version__} in {package}"
    yield "commit", commit(package.parent)
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    for name in MODULES:
        yield name, _version(name)
    yield "other packages", ", ".join(f"{name} {_installed(name)}" for name in PACKAGES)
    yield "system", platform.platform()
    yield from zip(("processor", "processor flags"), processor())
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield "threads", f"{os.cpu_count()} logical cores, OMP_NUM_THREADS {threads}"
    yield "GPU", _gpu()
    yield DATASETS, _datasets()


def _version(module: str) -> str:
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"does not import: {error}"
    except Exception as error:  # a package can fail in any way: a missing system library, another package's version
        return f"does not import: {error}"
    folder = os.path.dirname(getattr(found, "__file__", None) or "")
    return f"{getattr(found, '__version__', 'of unknown version')} in {folder}"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit(folder: Path) -> str:
    """Commit of the clone in a folder, with "-dirty" if files that it tracks have changed, or why it is not known."""
    if not (folder / ".git").exists():
        return "not a clone"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"


def processor() -> tuple[str, str]:
    """Name of the processor, and those of its flags that decide on speed."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), "unknown"
    name = re.search(r"^model name\s*:\s*(.*)", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)", text, re.MULTILINE)
    present = flags.group(1).split() if flags else []
    return name.group(1) if name else platform.machine(), " ".join(f for f in CPU_FLAGS if f in present) or "none"


def _gpu() -> str:
    try:
        import torch
    except Exception as error:
        return f"unknown: {error}"
    build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    if torch.version.hip:
        build = f"torch is built for ROCm {torch.version.hip}"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names) or 'none'}; {build}"


def _datasets() -> str:
    folder = os.environ.get(DATASETS)
    text = "not set, so ./datasets" if folder is None else folder
    try:
        content = ", ".join(sorted(os.listdir(folder or "datasets"))) or "nothing"
    except OSError:
        return f"{text} (no such folder)"
    return f"{text} (holds {content:.200})"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    return verb_parser("env", __doc__)


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Print the environment, line by line since imports take seconds; returns the exit code."""
    build_parser().parse_args(argv)
    for name, text in describe_environment():
        print(f"{name:{len(DATASETS)}}  {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

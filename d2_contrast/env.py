"""What a maintainer needs to know of a machine; ``python -m d2_contrast.env`` prints it for the report of an issue."""

import os
import platform
import re
import subprocess
from importlib import import_module, metadata
from pathlib import Path

from . import __version__

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
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe_environment() -> dict[str, str]:
    """Return versions, machine and settings, as text by what they are."""
    package = Path(__file__).resolve().parent
    lines = {"d2_contrast": f"{__version__} in {package}", "commit": commit(package.parent)}
    lines["python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    lines.update((name, _version(name)) for name in MODULES)
    lines["other packages"] = ", ".join(f"{name} {_installed(name)}" for name in PACKAGES)
    lines["system"] = platform.platform()
    lines["processor"], lines["processor flags"] = processor()
    lines["threads"] = f"{os.cpu_count()} logical cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"
    lines["GPU"] = _gpu()
    lines["DETECTRON2_DATASETS"] = _datasets()
    return lines


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
    folder = os.environ.get("DETECTRON2_DATASETS")
    text = "not set, so ./datasets" if folder is None else folder
    try:
        content = ", ".join(sorted(os.listdir(folder or "datasets"))) or "nothing"
    except OSError:
        return f"{text} (no such folder)"
    return f"{text} (holds {content:.200})"


if __name__ == "__main__":
    environment = describe_environment()
    width = max(map(len, environment))
    print("\n".join(f"{name:{width}}  {value}" for name, value in environment.items()))

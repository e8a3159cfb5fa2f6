"""The machine and the code that a run has been trained with."""

import platform
import re
import subprocess
from pathlib import Path

import torch


def cpu_name() -> str:
    """Name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def commit(root: Path) -> str | None:
    """Commit of the clone at ``root``, with "-dirty" if files that it tracks have changed; None if it is no clone."""
    if not (root / ".git").exists():
        return None  # git would find the repository of any folder above
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a clone that it does not trust
        return None


def describe_machine(root: Path, threads: int) -> dict[str, object]:
    """What is noted with a run: processor, threads, versions, commit of the clone at ``root``."""
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(root),
    }

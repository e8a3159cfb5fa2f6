"""What the benchmarks share: interleaved timing, peak memory, and Markdown."""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def machine() -> str:
    """One line on processor, threads, load and versions."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{model.group(1) if model else platform.processor()}, {torch.get_num_threads()} threads, "
        f"load average {os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def time_side_by_side(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function, see `time_rounds`."""
    return {name: statistics.median(seconds) for name, seconds in time_rounds(functions, repeats).items()}


def time_rounds(
    functions: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function in each round. In a round all take turns: other load on the machine meets all alike."""
    # As in training, where larger blocks have been freed before: from then on glibc keeps the pages of smaller ones.
    torch.empty(30 << 20, dtype=torch.uint8)
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def peak_memory_mb(function: Callable[[], object]) -> float:
    """How far the resident memory of this process rises while a function runs, MB (10^6 bytes)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory_kb("VmRSS")
    function()
    return (_memory_kb("VmHWM") - before) * 1024 / 1e6


def process_peak_mb() -> float:
    """The largest resident memory that this process has had, MB (10^6 bytes)."""
    return _memory_kb("VmHWM") * 1024 / 1e6


def _memory_kb(entry: str) -> int:
    return int(re.search(rf"{entry}:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def in_subprocess(module: str, *arguments: object, **environment: str) -> list[float]:
    """The numbers that ``python -m module arguments`` prints, with further variables of the environment."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    return [float(x) for x in process.stdout.split()]


def peak_in_subprocess(module: str, *arguments: object) -> float:
    """The peak memory that ``python -m module arguments`` prints, see `process_peak_mb`.

    What the process frees goes back at once, so that the peak is what it holds and not what the C library keeps.
    """
    return in_subprocess(module, *arguments, MALLOC_MMAP_THRESHOLD_="65536")[0]


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; floats get three significant digits."""

    def text(cell: object) -> str:
        if isinstance(cell, float):
            return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
        return f"{cell:,}" if isinstance(cell, int) else str(cell)

    lines = [header, ["---"] * len(header), *([text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot_growth(path: str, xlabel: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> None:
    """Draw log-log curves: panels by the label of their y axis, in each (x, y) points by name, "kind: form".

    Forms differ by colour, kinds by line style.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False)
    for axis, (ylabel, curves) in zip(axes[0], panels.items()):
        kinds, forms = (list(dict.fromkeys(name.split(": ")[i] for name in curves)) for i in range(2))
        for name, points in curves.items():
            kind, form = name.split(": ")
            style = ["-", "--", ":"][kinds.index(kind)]
            axis.loglog(*zip(*points), marker="o", linestyle=style, color=f"C{forms.index(form)}", label=name)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.grid(True, which="both", alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)

"""What a run shows on the terminal. Its log.txt holds everything."""

import io
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.logger import setup_logger

PACKAGE = __name__.partition(".")[0]
LOGGERS = ("fvcore", "detectron2", "py.warnings", PACKAGE)
# Seconds between two lines of progress in a log, which keeps every line.
LOG_SECONDS = 60.0
EVALUATED = re.compile(r"Inference done (\d+)/(\d+)\..*ETA=(\S+)")


def start_logging(folder: str) -> None:
    """Log everything to ``log.txt`` in a folder, and show on the terminal what a person needs.

    Processes other than the main one log to ``log.txt.rank1`` and so on, and show nothing.
    """
    rank = comm.get_rank()
    logging.captureWarnings(True)
    for name in LOGGERS:
        logger = setup_logger(folder, distributed_rank=rank, name=name, configure_stdout=False)
        for handler in [handler for handler in logger.handlers if isinstance(handler, Console)]:
            logger.removeHandler(handler)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, io.TextIOWrapper):
                handler.stream.reconfigure(errors="backslashreplace")  # names of files may hold any bytes
        if rank == 0:
            logger.addHandler(CONSOLE)


@contextmanager
def without_warnings_of(name: str) -> Iterator[None]:
    """Ignore the warnings that a logger of a library gives."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Console(logging.Handler):
    """Shows messages of this project, warnings and errors of all, and the progress of training and evaluation.

    On a terminal the line of progress is replaced, and fits the width. In a log there is a line now and then.
    """

    def __init__(self):
        super().__init__()
        self._shown = False
        self._last_progress = -LOG_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if match := EVALUATED.search(text):
                self.progress(f"evaluating: {match[1]} of {match[2]} images, {match[3]} left")
            elif record.levelno >= logging.WARNING:
                self.write(f"{record.levelname.capitalize()}: {_without_source(text)}")
            elif record.levelno >= logging.INFO and record.name.partition(".")[0] == PACKAGE:
                self.write(text)
        except Exception:
            self.handleError(record)

    def write(self, text: str) -> None:
        """Show lines that stay."""
        self._clear()
        print(text, flush=True)

    def progress(self, *parts: str) -> None:
        """Show the state: as many of the parts as fit into a line, the most important first."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            line = parts[0]
            for part in parts[1:]:
                if len(line) + 2 + len(part) <= width:
                    line += f"  {part}"
            self._clear()
            print(line[:width], end="", flush=True)
            self._shown = True
        elif time.monotonic() - self._last_progress >= LOG_SECONDS:
            self._last_progress = time.monotonic()
            print("  ".join(parts), flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="")
            self._shown = False


def _without_source(text: str) -> str:
    """The message of a Python warning without the line of code that gave it."""
    return re.sub(r"(Warning: .*)\n  .*\n?$", r"\1", text)


CONSOLE = Console()


class FirstIteration(HookBase):
    """Shows that training has begun, since figures are written every 20 iterations, which may take minutes."""

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            CONSOLE.progress(f"iteration {self.trainer.iter + 1:,} of {self.trainer.max_iter:,}")


class ProgressWriter(EventWriter):
    """Shows how far training is."""

    def __init__(self, max_iter: int, console: Console = CONSOLE, window_size: int = 20):
        """
        Args:
            max_iter: iterations of the whole run.
            console: where to show it.
            window_size: iterations over which the median of losses and times is taken.
        """
        self.max_iter = max_iter
        self.console = console
        self.window_size = window_size

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter >= self.max_iter:
            return
        values = {name: value for name, (value, _) in storage.latest_with_smoothing_hint(self.window_size).items()}
        parts = [f"iteration {storage.iter + 1:,} of {self.max_iter:,}"]
        if "time" in values:
            left = storage.history("time").median(1000) * (self.max_iter - storage.iter - 1)
            parts.append(f"{timedelta(seconds=round(left))} left")
        if "total_loss" in values:
            parts.append(f"loss {values['total_loss']:.3f}")
        contrast = [value for name, value in values.items() if name.startswith("loss_contrast")]
        if contrast:
            parts.append(f"contrastive {sum(contrast):.3f}")
        if "time" in values:
            parts.append(f"{values['time']:.2f} s/iteration")
        if "lr" in values:
            parts.append(f"rate {values['lr']:.2g}")
        self.console.progress(*parts)

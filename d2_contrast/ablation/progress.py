"""Progress of an ablation: one line that is updated on a terminal, a line from time to time in a log."""

import shutil
import time
from collections.abc import Callable
from typing import TextIO

TERMINAL_SECONDS = 1.0
LOG_SECONDS = 600.0


class Progress:
    """Writes events, which stay, and the current state, which is replaced on a terminal and rare in a log."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.is_terminal = stream.isatty()
        self._next = 0.0 if self.is_terminal else time.monotonic() + LOG_SECONDS
        self._line = ""

    def event(self, text: str) -> None:
        self._erase()
        self.stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._redraw()

    def update(self, state: Callable[[], str]) -> None:
        """Write the state if it is time to. ``state`` is called only then."""
        if time.monotonic() < self._next:
            return
        if self.is_terminal:
            self._next = time.monotonic() + TERMINAL_SECONDS
            self._erase()
            self._line = state()
            self._redraw()
        else:
            self._next = time.monotonic() + LOG_SECONDS
            self.event(state())

    def close(self) -> None:
        self._erase()
        self._line = ""
        self.stream.flush()

    def _erase(self) -> None:
        if self.is_terminal and self._line:
            self.stream.write("\r\x1b[K")

    def _redraw(self) -> None:
        if self.is_terminal and self._line:
            width = shutil.get_terminal_size().columns - 1
            text = self._line if len(self._line) <= width else self._line[: width - 1] + "…"
            self.stream.write(text)
        self.stream.flush()


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 run" or "2 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """A duration in words, such as "2 h 10 min" or "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"

"""metrics.json: what a run logs, one JSON object a line."""

import json
import math
import os
from collections import defaultdict

from detectron2.utils.events import EventWriter, get_event_storage


class MetricsWriter(EventWriter):
    """Detectron2's JSONWriter, in strict JSON: numbers that are not finite are null.

    A line that a killed run left unfinished is closed, so that it spoils no other.
    """

    def __init__(self, path: str, window_size: int = 20):
        """
        Args:
            path: of the file, to which lines are added.
            window_size: iterations over which the median of smoothed values is taken.
        """
        self.path = path
        self.window_size = window_size
        self._written = -1
        try:
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                is_cut_off = file.read(1) != b"\n"
        except OSError:  # there is none, or nothing in it
            is_cut_off = False
        self._file = open(path, "a")
        if is_cut_off:
            self._file.write("\n")

    def write(self) -> None:
        """Add a line for each iteration of which something is new, on the disk when this returns.

        Raises:
            OSError: the file cannot be written.
        """
        lines: dict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self.window_size).items():
            if iteration > self._written:
                lines[iteration][name] = value if math.isfinite(value) else None
        self._written = max(lines, default=self._written)
        try:
            for iteration, values in sorted(lines.items()):
                self._file.write(json.dumps({**values, "iteration": iteration}, sort_keys=True, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(f"{self.path}: cannot write this file ({error.strerror})") from error

    def close(self) -> None:
        self._file.close()

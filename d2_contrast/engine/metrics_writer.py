"""metrics.json: what a run logs, one JSON object a line."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping

from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from ..output import naming, write_text
from ..tables import read_json_lines

WINDOW = 20  # iterations over which the median of smoothed values is taken


class MetricsWriter(EventWriter):
    """Detectron2's JSONWriter, in strict JSON: numbers that are not finite are null.

    A run that goes on takes up its own file: lines of iterations that it does again, and a line that was cut off when
    it was killed, are dropped.
    """

    def __init__(self, path: str, window_size: int = WINDOW, start_iter: int = 0):
        """
        Args:
            path: of the file, to which lines are added.
            window_size: iterations over which the median of smoothed values is taken.
            start_iter: iteration that the run goes on with.
        """
        self.path = path
        self.window_size = window_size
        self._written: dict[str, int] = {}  # the last iteration of each name
        if os.path.isfile(path):
            records = [record for record in read_lines(path) if record["iteration"] < start_iter]
            for record in records:
                self._written |= dict.fromkeys(record, record["iteration"])
            write_text(path, "".join(map(_line, records)))
        self._file = open(path, "a")

    def write(self) -> None:
        """Add a line for each iteration of which something is new, on the disk when this returns.

        Raises:
            OSError: the file cannot be written.
        """
        lines: dict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self.window_size).items():
            if iteration > self._written.get(name, -1):
                lines[iteration][name] = value if math.isfinite(value) else None
                self._written[name] = iteration
        with naming(self.path):
            for iteration, values in sorted(lines.items()):
                self._file.write(_line({**values, "iteration": iteration}))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class LateWriter(EventWriter):
    """A writer that is made when it first has something to write, when it is known where the run goes on."""

    def __init__(self, make: Callable[[], EventWriter]):
        self._make = make
        self._writer: EventWriter | None = None

    def write(self) -> None:
        self._writer = self._writer or self._make()
        self._writer.write()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_lines(path: str) -> list[dict]:
    """The records of a metrics.json; lines that are none are left out."""
    return [record for record in read_json_lines(path) if isinstance(record.get("iteration"), int)]


def _line(record: Mapping) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False) + "\n"


def recent_values(storage: EventStorage, iteration: int, window_size: int = WINDOW) -> dict[str, dict]:
    """What a storage needs of its past, up to an iteration, to write the next lines; in plain values."""
    hints = storage.smoothing_hints()
    recent = {}
    for name, history in storage.histories().items():
        values = [list(pair) for pair in history.values()[-window_size:] if pair[1] <= iteration]
        if values:
            recent[name] = {"smoothed": hints[name], "values": values}
    return recent


def put_back(storage: EventStorage, recent: Mapping[str, Mapping]) -> None:
    """Log the values of :func:`recent_values` again, each at its iteration."""
    now = storage.iter
    for name, kept in recent.items():
        for value, iteration in kept["values"]:
            storage.iter = iteration
            storage.put_scalar(name, value, smoothing_hint=kept["smoothed"])
    storage.iter = now

"""Training samples that a run skips because they cannot be used (DATALOADER.ON_ERROR "skip")."""

import json
import logging
import os
from contextlib import suppress

from ..output import naming
from ..tables import read_json_lines

SKIPPED = "skipped_samples.jsonl"
# This many in a row mean that more is wrong than some files.
MAX_IN_ROW = 50

logger = logging.getLogger(__name__)


class SkippedSamples:
    """A list of them, as a file that all processes of a run and their workers append to: a JSON object a line."""

    def __init__(self, folder: str):
        """
        Args:
            folder: where the file is, or will be.
        """
        self.path = os.path.join(folder, SKIPPED)
        self._in_row = 0

    def add(self, file_name: str, reason: Exception) -> None:
        """Note a sample.

        Raises:
            ValueError: it is one of many in a row.
            OSError: the file cannot be written.
        """
        self._in_row += 1
        if self._in_row >= MAX_IN_ROW:
            raise ValueError(
                f"{self._in_row} training samples in a row cannot be used, more than DATALOADER.ON_ERROR skip passes "
                f"over; the last: {reason}"
            ) from reason
        logger.warning("Skipped: %s", reason)
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"file_name": file_name, "reason": str(reason)}) + "\n")  # one write: never mixed

    def note_success(self) -> None:
        """Say that a sample could be used."""
        self._in_row = 0

    def clear(self) -> None:
        """Remove the list that an earlier run has left."""
        with suppress(FileNotFoundError):
            os.remove(self.path)

    def describe(self) -> str:
        """All of them in one text, "" for none. A line that was cut off when a run was killed is left out."""
        try:
            notes = [note for note in read_json_lines(self.path) if {"file_name", "reason"} <= note.keys()]
        except FileNotFoundError:
            return ""
        reasons = {note["file_name"]: note["reason"] for note in notes}
        lines = "\n".join(f"  {reason}" for reason in reasons.values())
        return f"{len(reasons)} training samples could not be used and were skipped, {len(notes)} times:\n{lines}"

"""Markdown tables, short texts for them, and JSON files."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from .output import write_text


def markdown_table(rows: Sequence[Sequence[str]], headers: Sequence[str], texts: int = 1) -> str:
    """A Markdown table that can be read as it is; the first ``texts`` columns are text, the others numbers."""
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    header, *cells = [[cell.replace("|", r"\|") for cell in row] for row in (headers, *rows)]
    return tabulate(cells, header, tablefmt="pipe", colalign=align, disable_numparse=True)


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number for a table; "-" for NaN."""
    # Adding 0 turns -0 into 0.
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def told_apart(texts: Iterable[str]) -> dict[str, str]:
    """Each text as it is shown beside the others: a long one without its middle, but whole where two would look alike.

    The end is kept, since paths differ there.
    """
    short = {text: text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}" for text in texts}
    count = Counter(short.values())
    return {text: shown if count[shown] == 1 else text for text, shown in short.items()}


def write_json(path: str | os.PathLike, data: Mapping) -> None:
    """Write strict JSON, with null for NaN, by :func:`~.output.write_text`."""
    write_text(path, json.dumps(_without_nan(data), indent=1, allow_nan=False) + "\n")


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """The JSON objects of a file that has one a line; lines that are none, as one that was cut off, are left out."""
    records = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
    return records


def _without_nan(data):
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

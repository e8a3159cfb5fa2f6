"""The walk over the score matrix of anchors that are sorted by class.

Only a tile or a band of rows is in memory at a time, so memory grows with the number of anchors, not with its square.
Since anchors are sorted, the positives of a few rows lie in one block of columns. Only that block needs masks.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .device import to_device

__all__ = [
    "Band",
    "NegativeTiles",
    "SortedSet",
    "Tiling",
    "classes_of_equal_size",
    "cut_evenly",
    "for_each_anchor",
    "visit_bands",
]


class Tiling(NamedTuple):
    """How much of the score matrix is visited at once.

    Attributes:
        band_rows: smallest number of rows of a band.
        band_scores: a band has more rows as long as it has no more scores than this.
        tile_rows: rows and columns of a tile.
        kept_scores: tiles that are visited twice are kept up to this number of scores.
    """

    band_rows: int
    band_scores: int
    tile_rows: int
    kept_scores: int

    @staticmethod
    def of_device(device: torch.device) -> "Tiling":
        """On a CPU, scores should stay in the cache between passes. On an accelerator, a visit should keep it busy."""
        if device.type == "cpu":
            return Tiling(band_rows=512, band_scores=1 << 17, tile_rows=768, kept_scores=1 << 23)
        return Tiling(band_rows=256, band_scores=1 << 24, tile_rows=3072, kept_scores=1 << 24)

    def rows(self, columns: int) -> int:
        """The rows of a band that has this number of columns."""
        return max(self.band_rows, self.band_scores // columns)


class SortedSet(NamedTuple):
    """Anchors sorted by class.

    Attributes:
        vectors: (A, D).
        counts: number of anchors of each class; two sets that are contrasted list the same classes.
    """

    vectors: Tensor
    counts: list[int]


class Run(NamedTuple):
    """Anchors [start, stop) of a sorted set, and their classes from first to last."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)


class Band(NamedTuple):
    """All scores of some anchors with another set.

    Attributes:
        rows: the anchors.
        block: the only columns that hold positives.
        exponentials: (rows, B), exp of the scores of negatives, 0 for positives.
        block_scores: (rows, block), scores of positives and of some negatives.
        is_positive: (rows, block), 1 or 0.
    """

    rows: slice
    block: slice
    exponentials: Tensor
    block_scores: Tensor
    is_positive: Tensor


def visit_bands(anchors: SortedSet, others: SortedSet, temperature: float, tiling: Tiling) -> Iterator[Band]:
    """Yield the score matrix from one set to another by bands of rows, all in the same memory. They may be changed."""
    runs = _cut(anchors.counts, tiling.rows(len(others.vectors)))
    class_of_row, class_of_column = _class_of_each(anchors), _class_of_each(others)
    ends = [0, *accumulate(others.counts)]
    buffer = anchors.vectors.new_empty(_longest(runs), len(others.vectors))
    for run in runs:
        rows = anchors.vectors[run.span]
        block = slice(ends[run.first], ends[run.last + 1])
        scores = buffer[: len(rows)].addmm_(rows, others.vectors.t(), beta=0, alpha=1 / temperature)
        block_scores = scores[:, block].clone()
        is_positive = torch.empty_like(block_scores)
        torch.eq(class_of_row[run.span, None], class_of_column[block], out=is_positive)
        exponentials = scores.exp_()
        exponentials[:, block].mul_(1 - is_positive)
        yield Band(run.span, block, exponentials, block_scores, is_positive)


class NegativeTiles:
    """The scores of negatives within a set, tile by tile, on and above the diagonal: the matrix is symmetric."""

    def __init__(self, anchors: SortedSet, temperature: float, tiling: Tiling, keep: bool):
        """
        Args:
            anchors: one or more.
            temperature: tau.
            tiling: how much is visited at once.
            keep: keep tiles for a second visit, as many as the tiling allows.
        """
        self._vectors = anchors.vectors
        self._temperature = temperature
        self._class_of = _class_of_each(anchors)
        self._runs = _cut(anchors.counts, tiling.tile_rows)
        self._room = tiling.kept_scores if keep else 0
        self._kept: dict[tuple[Run, Run], Tensor] = {}
        self._buffer = self._vectors.new_empty(_longest(self._runs) ** 2)

    def visit(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield rows, columns, and exp of the scores of negatives, 0 elsewhere, for each tile that holds some.

        In the last visit they may be changed.
        """
        for i, row in enumerate(self._runs):
            for column in self._runs[i:]:
                if row.first == row.last == column.first == column.last:
                    continue
                exponentials = self._kept.get((row, column))
                if exponentials is None:
                    exponentials = self._compute(row, column)
                yield row.span, column.span, exponentials

    def _compute(self, row: Run, column: Run) -> Tensor:
        rows, columns = self._vectors[row.span], self._vectors[column.span]
        scores = self._place(row, column).addmm_(rows, columns.t(), beta=0, alpha=1 / self._temperature)
        exponentials = scores.exp_()
        if column.first <= row.last:
            is_negative = torch.empty_like(exponentials)
            torch.ne(self._class_of[row.span, None], self._class_of[column.span], out=is_negative)
            exponentials.mul_(is_negative)
        return exponentials

    def _place(self, row: Run, column: Run) -> Tensor:
        """Where a tile goes: memory of its own as long as there is room."""
        height, width = row.stop - row.start, column.stop - column.start
        if height * width > self._room:
            return self._buffer[: height * width].view(height, width)
        self._room -= height * width
        self._kept[row, column] = self._vectors.new_empty(height, width)
        return self._kept[row, column]


def classes_of_equal_size(anchors: SortedSet, tiling: Tiling) -> Iterator[tuple[slice | Tensor, int]]:
    """Yield the rows of classes whose positives are visited together, and the size of each; no class of size 1."""
    starts_of_size = defaultdict(list)
    for start, size in zip(accumulate(anchors.counts, initial=0), anchors.counts):
        if size > 1:
            starts_of_size[size].append(start)
    for size, starts in starts_of_size.items():
        together = max(1, tiling.rows(size) // size)
        for i in range(0, len(starts), together):
            some = starts[i : i + together]
            if some[-1] - some[0] == size * (len(some) - 1):  # one after the other
                yield slice(some[0], some[-1] + size), size
            else:
                rows = (torch.tensor(some)[:, None] + torch.arange(size)).flatten()
                yield to_device(rows, anchors.vectors.device), size


def for_each_anchor(values: Tensor, anchors: SortedSet) -> Tensor:
    """The value of its class for each anchor, (classes,) to (A,), brought to their device without waiting for it."""
    repeated = values.repeat_interleave(torch.tensor(anchors.counts))
    return to_device(repeated, anchors.vectors.device)


def _class_of_each(anchors: SortedSet) -> Tensor:
    """The class of each anchor, as floating point.

    Comparing these into floating-point masks is several times faster on CPUs.
    """
    return for_each_anchor(torch.arange(len(anchors.counts), dtype=anchors.vectors.dtype), anchors)


def _cut(counts: list[int], most: int) -> list[Run]:
    """Cut a sorted set into runs of whole classes, and parts of classes that are too large, see ``cut_evenly``."""
    runs: list[Run] = []
    start = 0
    for label, count in enumerate(counts):
        if runs and start + count - runs[-1].start <= most:
            runs[-1] = runs[-1]._replace(stop=start + count, last=label)
        else:
            runs += [Run(start + a, start + b, label, label) for a, b in cut_evenly(count, most)]
        start += count
    return runs


def _longest(runs: list[Run]) -> int:
    return max(run.stop - run.start for run in runs)


def cut_evenly(count: int, most: int) -> list[tuple[int, int]]:
    """Cut a number of anchors into equal parts, from first to last. A part may be 1.5 times as large as asked for.

    So a class that is a little too large stays whole: two parts would make four tiles of one.
    """
    parts = -(-2 * count // (3 * most))
    cuts = [count * i // max(parts, 1) for i in range(parts + 1)]
    return list(zip(cuts, cuts[1:]))

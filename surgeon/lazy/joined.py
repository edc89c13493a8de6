"""Tensors put together from parts of others; along dimension 0 that is copies only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

import numpy as np

from surgeon.base.regions import Region, intersection, whole
from surgeon.lazy.base import BLOCK, Computed, LazyTensor, Piece, Scratch, TensorSpec
from surgeon.numeric.dtypes import DTYPES, Array

# Reading this many runs of a row one by one takes as long as reading the row.
_FEW_RUNS = 8


def _spans(start: int, stop: int, row: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut elements start to stop into (first row, end row, from, to): whole rows, or part of one.

    `from` and `to` count inside the row; they are 0 and `row` where the rows are whole.
    """
    while start < stop:
        first, inside = divmod(start, row)
        end = stop // row
        if inside or end == first:
            upto = min(row, inside + stop - start)
            yield first, first + 1, inside, upto
            start += upto - inside
        else:
            yield first, end, 0, row
            start = end * row


@dataclass(frozen=True, eq=False)
class Joined:
    """Parts one after the other along a dimension."""

    parts: tuple[LazyTensor, ...]
    dim: int

    @cached_property
    def spec(self) -> TensorSpec:
        return self.parts[0].spec.resized(self.dim, sum(p.spec.shape[self.dim] for p in self.parts))

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return self.parts

    def _within(self, start: int, stop: int) -> Iterator[tuple[LazyTensor, int, int, int]]:
        """The parts of one row that lie between start and stop: (part, row length, from, to)."""
        offset = 0
        for part in self.parts:
            length = prod(part.spec.shape[self.dim :])
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                yield part, length, low, high
            offset += length

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        row = prod(self.spec.shape[self.dim :])
        if start == stop:
            return
        if start // row != (stop - 1) // row:
            yield Computed(self, start, stop)
            return
        first = start // row
        for part, length, low, high in self._within(start - first * row, stop - first * row):
            yield from part.pieces(first * length + low, first * length + high)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        row = prod(self.spec.shape[self.dim :])
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        filled = 0
        for first, end, inside, upto in _spans(start, stop, row):
            size = (end - first) * (upto - inside)
            block = out[filled : filled + size].reshape(end - first, upto - inside)
            column = 0
            for part, length, low, high in self._within(inside, upto):
                with scratch.scope():
                    # Either whole rows of the part (low = 0, high = length) or one row in part.
                    values = part.elements(first * length + low, (end - 1) * length + high, scratch)
                    block[:, column : column + high - low] = values.reshape(end - first, -1)
                column += high - low
            filled += size
        return out

    def new_regions(self) -> tuple[Region, ...]:
        sizes = [part.spec.shape[self.dim] for part in self.parts]
        return tuple(
            _shifted(region, self.dim, offset)
            for part, offset in zip(self.parts, accumulate(sizes, initial=0), strict=False)
            for region in part.new_regions()
        )


def _shifted(region: Region, dim: int, offset: int) -> Region:
    start, stop = region[dim]
    return (*region[:dim], (start + offset, stop + offset), *region[dim + 1 :])


@dataclass(frozen=True, eq=False)
class Selected:
    """Ranges of another tensor along a dimension, in the order given."""

    source: LazyTensor
    dim: int
    ranges: tuple[tuple[int, int], ...]

    @cached_property
    def spec(self) -> TensorSpec:
        return self.source.spec.resized(self.dim, sum(stop - start for start, stop in self.ranges))

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The runs of the source's row that are elements start to stop of a row of this one."""
        inner, offset = prod(self.source.spec.shape[self.dim + 1 :]), 0
        for first, last in self.ranges:
            length = (last - first) * inner
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                yield first * inner + low, first * inner + high
            offset += length

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        row = prod(self.spec.shape[self.dim :])
        if start == stop:
            return
        if start // row != (stop - 1) // row:
            yield Computed(self, start, stop)
            return
        first, source_row = start // row, prod(self.source.spec.shape[self.dim :])
        for low, high in self._within(start - first * row, stop - first * row):
            yield from self.source.pieces(first * source_row + low, first * source_row + high)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        row, source_row = (prod(t.spec.shape[self.dim :]) for t in (self, self.source))
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        filled = 0
        for first, end, inside, upto in _spans(start, stop, row):
            runs = list(self._within(inside, upto))
            # Rows too long for scratch, or one row in few runs: only what is asked for is read.
            if source_row > BLOCK or (end - first == 1 and len(runs) <= _FEW_RUNS):
                for line in range(first, end):
                    for low, high in runs:
                        with scratch.scope():
                            out[filled : filled + high - low] = self.source.elements(
                                line * source_row + low, line * source_row + high, scratch
                            )
                        filled += high - low
                continue
            lines = max(1, BLOCK // source_row)
            for line in range(first, end, lines):
                count = min(lines, end - line)
                size = count * (upto - inside)
                block = out[filled : filled + size].reshape(count, upto - inside)
                with scratch.scope():
                    source = self.source.elements(
                        line * source_row, (line + count) * source_row, scratch
                    ).reshape(count, source_row)
                    np.concatenate([source[:, low:high] for low, high in runs], axis=1, out=block)
                filled += size
        return out

    def new_regions(self) -> tuple[Region, ...]:
        found: list[Region] = []
        offset = 0
        for start, stop in self.ranges:
            box = whole(self.source.spec.shape)
            window = (*box[: self.dim], (start, stop), *box[self.dim + 1 :])
            for region in self.source.new_regions():
                if (shared := intersection(region, window)) is not None:
                    found.append(_shifted(shared, self.dim, offset - start))
            offset += stop - start
        return tuple(found)

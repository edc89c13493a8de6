"""Tensors put together from parts of others; along dimension 0 that is copies only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region, intersection, whole
from surgeon.lazy.base import (
    BLOCK,
    NOTHING,
    Computed,
    Evaluation,
    LazyTensor,
    Part,
    Request,
    ScratchBytes,
    TensorSpec,
)
from surgeon.lazy.evaluate import Form
from surgeon.lazy.scratch import Scratch
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


class Move(Form):
    """Elements of other tensors, each as it is there.

    What it says is known at once, of operands that know it: asked later, a chain of thousands of
    moves would ask on and on.
    """

    step = BLOCK
    is_computed_at_once = False
    is_move = True
    is_in_place = False
    about = NOTHING
    initialisers = None

    def __post_init__(self: LazyTensor) -> None:
        _ = self.spec, self.is_exact, self.new_regions()

    @cached_property
    def is_exact(self: LazyTensor) -> bool:
        return all(operand.is_exact for operand in self.operands)

    @property
    def byte_origin(self) -> tuple[object, ...]:
        return (id(self),)

    @property
    def scratch_bytes(self: LazyTensor) -> ScratchBytes:
        block = min(self.spec.count, BLOCK) * width_of(self)
        return ScratchBytes(0, block, block)


def width_of(tensor: LazyTensor) -> int:
    """Return the bytes of an element on its way: of what is stored, or not rounded yet."""
    return DTYPES[tensor.spec.dtype].storage.itemsize if tensor.is_exact else 8


@dataclass(frozen=True, eq=False)
class Joined(Move):
    """Parts one after the other along a dimension."""

    parts: tuple[LazyTensor, ...]
    dim: int

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return Joined(operands, self.dim)

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

    def locate(self, start: int, stop: int) -> Iterator[Computed | Part]:
        row = prod(self.spec.shape[self.dim :])
        if start == stop:
            return
        if start // row != (stop - 1) // row:
            yield Computed(self, start, stop)
            return
        first = start // row
        for part, length, low, high in self._within(start - first * row, stop - first * row):
            yield Part(part, first * length + low, first * length + high)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Evaluation:
        row = prod(self.spec.shape[self.dim :])
        out: Array = scratch.take(working or DTYPES[self.spec.dtype].storage, stop - start)
        filled = 0
        for first, end, inside, upto in _spans(start, stop, row):
            size = (end - first) * (upto - inside)
            block = out[filled : filled + size].reshape(end - first, upto - inside)
            column = 0
            for part, length, low, high in self._within(inside, upto):
                with scratch.scope():
                    # Either whole rows of the part (low = 0, high = length) or one row in part.
                    low_end, high_end = first * length + low, (end - 1) * length + high
                    values = yield Request(part, low_end, high_end, working)
                    block[:, column : column + high - low] = values.reshape(end - first, -1)
                column += high - low
            filled += size
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return self._new_regions

    @cached_property
    def _new_regions(self) -> tuple[Region, ...]:
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
class Selected(Move):
    """Ranges of another tensor along a dimension, in the order given."""

    source: LazyTensor
    dim: int
    ranges: tuple[tuple[int, int], ...]

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        (source,) = operands
        return Selected(source, self.dim, self.ranges)

    @cached_property
    def spec(self) -> TensorSpec:
        return self.source.spec.resized(self.dim, sum(stop - start for start, stop in self.ranges))

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @cached_property
    def _ends(self) -> list[int]:
        """Where the ranges end, in entries of this tensor."""
        return list(accumulate(stop - start for start, stop in self.ranges))

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The runs of the source's row that are elements start to stop of a row of this one."""
        inner = prod(self.source.spec.shape[self.dim + 1 :])
        # A vocabulary in another order has as many ranges as rows.
        number = bisect_right(self._ends, start // inner) if inner else len(self.ranges)
        offset = self._ends[number - 1] * inner if number else 0
        while number < len(self.ranges) and offset < stop:
            first, last = self.ranges[number]
            number += 1
            length = (last - first) * inner
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                yield first * inner + low, first * inner + high
            offset += length

    def locate(self, start: int, stop: int) -> Iterator[Computed | Part]:
        row = prod(self.spec.shape[self.dim :])
        if start == stop:
            return
        if start // row != (stop - 1) // row:
            yield Computed(self, start, stop)
            return
        first, source_row = start // row, prod(self.source.spec.shape[self.dim :])
        for low, high in self._within(start - first * row, stop - first * row):
            yield Part(self.source, first * source_row + low, first * source_row + high)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Evaluation:
        row, source_row = (prod(t.spec.shape[self.dim :]) for t in (self, self.source))
        out: Array = scratch.take(working or DTYPES[self.spec.dtype].storage, stop - start)
        filled = 0
        for first, end, inside, upto in _spans(start, stop, row):
            runs = list(self._within(inside, upto))
            # Rows too long for scratch, or one row in few runs: only what is asked for is read.
            if source_row > BLOCK or (end - first == 1 and len(runs) <= _FEW_RUNS):
                for line in range(first, end):
                    for low, high in runs:
                        with scratch.scope():
                            low_end, high_end = line * source_row + low, line * source_row + high
                            out[filled : filled + high - low] = yield Request(
                                self.source, low_end, high_end, working
                            )
                        filled += high - low
                continue
            lines = max(1, BLOCK // source_row)
            for line in range(first, end, lines):
                count = min(lines, end - line)
                size = count * (upto - inside)
                block = out[filled : filled + size].reshape(count, upto - inside)
                with scratch.scope():
                    begin, end_of_rows = line * source_row, (line + count) * source_row
                    block_of = yield Request(self.source, begin, end_of_rows, working)
                    source = block_of.reshape(count, source_row)
                    np.concatenate([source[:, low:high] for low, high in runs], axis=1, out=block)
                filled += size
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return self._new_regions

    @cached_property
    def _new_regions(self) -> tuple[Region, ...]:
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

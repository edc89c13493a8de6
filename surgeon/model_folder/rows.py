"""Which row of a tensor of the input each row of a tensor is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from math import prod

import numpy as np

from surgeon.initialisers.parts import Bound
from surgeon.lazy import (
    Computed,
    Fresh,
    LazyTensor,
    Scratch,
    Stream,
    TensorSpec,
    transplanted,
    walk,
)
from surgeon.numeric.dtypes import Array

# In the place of a row's number: it was created, nobody knows what it was, or it is a copy.
NEW, UNKNOWN, COPY = -1, -2, -3
_ANY = Stream(0, "", "")

# (number of the first old row, or what stands in its place; how many rows)
Run = tuple[int, int]


def row_numbers(tensor: LazyTensor, old: LazyTensor) -> Callable[[int], int]:
    """Return what tells which row of `old` a row is; `NEW`, `UNKNOWN` or `COPY` for others."""
    return numbers_in(row_runs(tensor, old))


def numbers_in(runs: Sequence[Run]) -> Callable[[int], int]:
    """Return what tells which old row a row is, by runs of them."""
    ends = list(accumulate(length for _, length in runs))

    def number_of(number: int) -> int:
        run = bisect_right(ends, number)
        first, length = runs[run]
        return first if first < 0 else first + number - (ends[run] - length)

    return number_of


def row_runs(tensor: LazyTensor, old: LazyTensor) -> list[Run]:
    """Return the rows of a tensor as runs of rows of `old`, as long as can be."""
    kinds: dict[int, int] = {}

    def numbers(form: LazyTensor) -> LazyTensor:
        spec = TensorSpec("I64", form.spec.shape)
        if form.byte_origin == old.byte_origin:
            made = Fresh(spec, Bound("rows", partial(_rows_at, prod(spec.shape[1:]))), _ANY)
            kinds[id(made)] = 0
            return made
        # What is calculated of several tensors, as merges are, stands where the input's stood.
        if form.initialisers is None:
            for source in form.operands:
                if source.spec.shape == spec.shape and any(
                    inner.byte_origin == old.byte_origin for inner in walk(source)
                ):
                    return transplanted(source, numbers)
        number = UNKNOWN if form.initialisers is None else NEW if form.initialisers else COPY
        made = Fresh(spec, Bound("rows", partial(_all_alike, number)), _ANY)
        kinds[id(made)] = number
        return made

    found, scratch = transplanted(tensor, numbers), Scratch()
    row, runs = prod(tensor.spec.shape[1:]), list[Run]()
    if not tensor.spec.count:
        return runs
    pieces = [
        (kinds.get(id(piece.tensor)), piece.start, piece.stop)
        for piece in found.pieces(0, found.spec.count)
        if isinstance(piece, Computed)
    ]
    if all(kind is not None and not (start % row or stop % row) for kind, start, stop in pieces):
        for kind, start, stop in pieces:
            _append(runs, kind or start // row, (stop - start) // row)
        return runs
    for number in range(tensor.spec.shape[0]):  # columns have moved too
        with scratch.scope():
            (origin,) = found.elements(number * row, number * row + 1, scratch).tolist()
        _append(runs, int(origin), 1)
    return runs


def _append(runs: list[Run], first: int, length: int) -> None:
    """Add rows to runs of them, to the last one where they go on with it."""
    last, rows = runs[-1] if runs else (UNKNOWN, 0)
    if rows and first == (last if last < 0 else last + rows):
        runs[-1] = (last, rows + length)
    else:
        runs.append((first, length))


def _rows_at(row: int, start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
    return np.arange(start, stop) // row


def _all_alike(number: int, start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
    return np.full(stop - start, number)

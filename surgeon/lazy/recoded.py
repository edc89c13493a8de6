"""Tensors whose runs of elements are each made of a run of another's, such as codes of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    Computed,
    Copied,
    LazyTensor,
    Piece,
    Scratch,
    Sharded,
    Stored,
    TensorSpec,
)
from surgeon.lazy.blockwise import upcast_blocks
from surgeon.numeric.dtypes import DTYPES, LARGEST, SPARE, Array, downcast

# Of the source's elements, those of the companions, and the number of the first run: the values.
RecodeKernel = Callable[[Array, Sequence[Array], int], Array]


@dataclass(frozen=True, eq=False)
class Recoded:
    """Weights made of a quantised format's codes, or codes of weights, a few runs at a time.

    `run` elements are made of `source_run` of the first operand's; its last run may be short. The
    other operands, the companions, are held whole. The kernel gets the first operand upcast to
    `working`, or as it is stored where that is None, and companions always as they are stored. Its
    values are rounded once; where they do not fit into the spec's dtype, `explain` raises.
    """

    spec: TensorSpec
    kernel: RecodeKernel
    operands: tuple[LazyTensor, ...]
    run: int
    source_run: int
    working: np.dtype[Any] | None = None
    explain: Callable[[Array], None] | None = None

    @property
    def held_bytes(self) -> int:
        """The most bytes that computing it takes."""
        companions = sum(tensor.spec.size_bytes for tensor in self.operands[1:])
        runs = self._runs_at_once()
        # Source and values, as float32 and as indices on the way to them.
        return companions + runs * (self.run + self.source_run) * 24

    def _runs_at_once(self) -> int:
        return max(1, BLOCK // max(self.run, self.source_run))

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        strips = scratch.known(self, self._strips)
        size = self._runs_at_once() * self.run
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            if strips.number != number:
                strips.number, strips.values = number, self._strip(strips, number, scratch)
            inside = first - number * size
            out[first - start : last - start] = strips.values[inside : inside + last - first]
        return out

    def _strips(self, scratch: Scratch) -> _Strips:
        companions = []
        for tensor in self.operands[1:]:
            with scratch.scope():
                stored = tensor.elements(0, tensor.spec.count, scratch)
                companions.append(stored.copy().reshape(tensor.spec.shape))
        return _Strips(companions, -1, np.empty(0))

    def _strip(self, strips: _Strips, number: int, scratch: Scratch) -> Array:
        """Return the stored elements of a strip: of whole runs, always the same ones."""
        source, runs = self.operands[0], self._runs_at_once()
        first = number * runs * self.source_run
        last = min(first + runs * self.source_run, source.spec.count)
        with scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            block = (
                source.elements(first, last, scratch)
                if self.working is None
                else upcast_blocks([source], first, last, scratch, self.working)[0]
            )
            values = self.kernel(block, strips.companions, number * runs).reshape(-1)
            if self.explain and not np.all(np.abs(values) <= LARGEST[self.spec.dtype]):
                self.explain(values)
            stored = np.empty(len(values), DTYPES[self.spec.dtype].storage)
            downcast(values, self.spec.dtype, stored, np.empty(SPARE * len(values), np.uint32))
        return stored

    def new_regions(self) -> tuple[Region, ...]:
        return ()


@dataclass
class _Strips:
    """What a worker knows of a tensor: its companions, and the strip that it made last."""

    companions: list[Array]
    number: int
    values: Array


def is_recoded(form: LazyTensor) -> bool:
    """Say whether a form reads codes as the values that they stand for, or writes such codes."""
    return isinstance(form, Recoded)


def moved_from(tensor: LazyTensor) -> object:
    """Return what a tensor shares with all that only moved from it: its place in a file, or it."""
    match tensor:
        case Copied(source=source) | Sharded(source=source):
            return moved_from(source)
        case Stored(file=file, offset=offset, spec=spec):
            return (id(file), offset, spec)
    return id(tensor)

"""Tensors whose arithmetic needs entire tensors at once: decompositions, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from surgeon.base.regions import Region
from surgeon.lazy.base import BLOCK, Computed, LazyTensor, Piece, Scratch, TensorSpec
from surgeon.lazy.blockwise import upcast_blocks
from surgeon.numeric.dtypes import DTYPES, LARGEST, SPARE, Array, downcast

_FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class WholeTensor:
    """Arithmetic on entire tensors, kept until the tensor is written.

    The kernel gets each operand in its own shape, upcast to `working`, and returns the values of
    the spec's shape; `spare_bytes` is what it takes besides them. Where a result does not fit into
    the spec's dtype, `explain` is given the operands, to raise what is wrong with them. A tensor
    that several others take parts of is computed once for all of them where they are written one
    after the other; with `is_kept`, for what is small but dear, once for all in a process. `about`
    holds the parameters that the arithmetic was made with, to be shown.
    """

    spec: TensorSpec
    kernel: Callable[[Sequence[Array]], Array]
    operands: tuple[LazyTensor, ...]
    spare_bytes: int = 0
    working: np.dtype[Any] = _FLOAT64
    explain: Callable[[Sequence[Array]], None] | None = None
    is_kept: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    _kept: list[Array] = field(default_factory=list, init=False, repr=False)

    @property
    def held_bytes(self) -> int:
        """The most bytes that computing it takes."""
        counts = sum(tensor.spec.count for tensor in self.operands) + self.spec.count
        return counts * self.working.itemsize + self.spec.size_bytes + self.spare_bytes

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        if not self.is_kept:
            stored: Array = scratch.known(self, self._computed)[start:stop]
            return stored
        if not self._kept:
            self._kept.append(self._computed(scratch))
        return self._kept[0][start:stop]

    def _computed(self, scratch: Scratch) -> Array:
        values = [read_whole(tensor, scratch, self.working) for tensor in self.operands]
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            result = self.kernel(values).reshape(-1)
        if self.explain and not np.all(np.abs(result) <= LARGEST[self.spec.dtype]):
            self.explain(values)
        stored = np.empty(self.spec.count, DTYPES[self.spec.dtype].storage)
        for start in range(0, self.spec.count, BLOCK):
            block = np.ascontiguousarray(result[start : start + BLOCK])
            spare = np.empty(SPARE * len(block), np.uint32)
            downcast(block, self.spec.dtype, stored[start : start + BLOCK], spare)
        stored.flags.writeable = False
        return stored

    def new_regions(self) -> tuple[Region, ...]:
        return ()


def read_whole(tensor: LazyTensor, scratch: Scratch, working: np.dtype[Any] = _FLOAT64) -> Array:
    """Return all values of a tensor in its shape, upcast to `working`; read-only."""
    values = np.empty(tensor.spec.count, working)
    for start in range(0, tensor.spec.count, BLOCK):
        with scratch.scope():
            stop = min(start + BLOCK, tensor.spec.count)
            (values[start:stop],) = upcast_blocks([tensor], start, stop, scratch, working)
    values.flags.writeable = False
    return values.reshape(tensor.spec.shape)

"""Tensors whose entries along a dimension are each multiplied by a number of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from surgeon.base.regions import Region
from surgeon.lazy.base import Computed, LazyTensor, Piece, Scratch, TensorSpec
from surgeon.lazy.blockwise import upcast_blocks
from surgeon.numeric.dtypes import DTYPES, SPARE, Array, downcast

_FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class Scaled:
    """A tensor of floats, entry i along `dim` multiplied by `factors[i]` (float64).

    Products are computed in float64 and rounded once. Factors are at most 1 in magnitude, so none
    of them overflows.
    """

    source: LazyTensor
    dim: int
    factors: Array

    @property
    def spec(self) -> TensorSpec:
        return self.source.spec

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        inner = prod(self.spec.shape[self.dim + 1 :])
        with scratch.scope():
            (block,) = upcast_blocks([self.source], start, stop, scratch, _FLOAT64)
            entry = np.arange(start, stop)
            entry //= inner
            entry %= len(self.factors)
            values = self.factors[entry]
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                np.multiply(block, values, out=values)
            downcast(values, self.spec.dtype, out, scratch.take(np.uint32, SPARE * (stop - start)))
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return self.source.new_regions()

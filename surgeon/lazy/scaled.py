"""Tensors whose entries along a dimension are each multiplied by a number of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    NOTHING,
    Evaluation,
    LazyTensor,
    Request,
    ScratchBytes,
    TensorSpec,
    float64,
    is_without_rounding,
)
from surgeon.lazy.evaluate import ComputedForm
from surgeon.lazy.scratch import Scratch
from surgeon.numeric.dtypes import DTYPES, SPARE, Array, downcast, rounding_bytes

# Values and products as float64, a float32 below them, the index of each factor and the factors.
_SCALED = 4 * 8 + 4


@dataclass(frozen=True, eq=False)
class Scaled(ComputedForm):
    """A tensor of floats, entry i along `dim` multiplied by `factors[i]` (float64).

    Products are computed in float64, and rounded where they are stored. Factors are at most 1 in
    magnitude, so none of them overflows.
    """

    source: LazyTensor
    dim: int
    factors: Array

    step = BLOCK
    is_computed_at_once = False
    is_in_place = True
    about = NOTHING
    initialisers = None

    def __post_init__(self) -> None:
        _ = self.spec, self._new_regions

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        (source,) = operands
        return replace(self, source=source)

    @cached_property
    def spec(self) -> TensorSpec:
        return self.source.spec

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @property
    def is_exact(self) -> bool:
        return is_without_rounding(self.spec.dtype)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        own = DTYPES[self.spec.dtype].storage.itemsize
        each = own + _SCALED + rounding_bytes(self.spec.dtype)
        return ScratchBytes(0, min(self.spec.count, BLOCK) * each, 0)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Evaluation:
        inner = prod(self.spec.shape[self.dim + 1 :])
        with scratch.scope() as scope:
            block: Array = yield Request(self.source, start, stop, float64())
            entry = np.arange(start, stop)
            entry //= inner
            entry %= len(self.factors)
            values = self.factors[entry]
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                np.multiply(block, values, out=values)
            made = scratch.take(working or DTYPES[self.spec.dtype].storage, stop - start)
            with scratch.scope():
                if working is None:
                    spare = scratch.take(np.uint32, SPARE * (stop - start))
                    downcast(values, self.spec.dtype, made, spare)
                else:
                    np.copyto(made, values, casting="same_kind")
            return scope.keep(made)

    def new_regions(self) -> tuple[Region, ...]:
        return self._new_regions

    @cached_property
    def _new_regions(self) -> tuple[Region, ...]:
        return self.source.new_regions()

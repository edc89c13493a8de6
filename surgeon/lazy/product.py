"""The product of two matrices, strip by strip: what an adapter adds to a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    NOTHING,
    LazyTensor,
    ScratchBytes,
    TensorSpec,
)
from surgeon.lazy.evaluate import ComputedForm
from surgeon.lazy.scratch import Scratch
from surgeon.lazy.whole_tensor import read_whole
from surgeon.numeric.blas import one_thread
from surgeon.numeric.dtypes import Array
from surgeon.numeric.matrices import product


@dataclass(frozen=True, eq=False)
class Product(ComputedForm):
    """`left @ right` (transposed, if said) as float64 in another shape of as many elements.

    Dimensions after the second of `left`, and after the first of `right`, count as one. The
    factors are held while the tensor is written; of the product, only a strip of rows is.
    """

    shape: tuple[int, ...]
    left: LazyTensor
    right: LazyTensor
    is_transposed: bool = False

    step = BLOCK
    is_exact = True
    is_computed_at_once = False
    is_in_place = False
    about = NOTHING
    initialisers = None

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        left, right = operands
        return replace(self, left=left, right=right)

    @cached_property
    def spec(self) -> TensorSpec:
        return TensorSpec("F64", self.shape)

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.left, self.right)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        factors = sum(factor.spec.count for factor in self.operands)
        strip = max(BLOCK, self.spec.count // self.shape[0]) if self.spec.count else 0
        return ScratchBytes(8 * (factors + strip), 8 * min(self.spec.count, BLOCK), 0)

    def prepare(self, scratch: Scratch) -> None:
        if self.spec.count:
            scratch.known(self, self._strips)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array:
        strips = scratch.known(self, self._strips)
        out = scratch.take(np.float64, stop - start)
        size = strips.rows * strips.columns
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            strip = strips.strip(number)
            out[first - start : last - start] = strip[first - number * size : last - number * size]
        return out

    def _strips(self, scratch: Scratch) -> _Strips:
        left = read_whole(self.left, scratch).reshape(self.left.spec.shape[:2])
        right = read_whole(self.right, scratch).reshape(self.right.spec.shape[0], -1)
        return _Strips(right.T, left.T) if self.is_transposed else _Strips(left, right)

    def new_regions(self) -> tuple[Region, ...]:
        return ()


def is_product(tensor: LazyTensor) -> TypeGuard[Product]:
    """Say whether a tensor is a product whose factors may be asked for."""
    return isinstance(tensor, Product)


class _Strips:
    """A product of which one strip is kept: blocks are asked for in order, and overlap strips.

    A strip is always computed as a whole: which rows are multiplied at once decides about bits.
    """

    def __init__(self, left: Array, right: Array) -> None:
        self._left, self._right = left, right
        self.columns = right.shape[1]
        self.rows = max(1, BLOCK // self.columns)
        self._kept: tuple[int, Array] | None = None

    def strip(self, number: int) -> Array:
        """Return the elements of rows `number * rows` and following, flat."""
        if self._kept is None or self._kept[0] != number:
            rows = self._left[number * self.rows : (number + 1) * self.rows]
            with one_thread():
                self._kept = number, product(rows, self._right).reshape(-1)
        return self._kept[1]

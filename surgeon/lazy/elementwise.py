"""Tensors that are arithmetic on others, streamed in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from surgeon.dtypes import DTYPES, LARGEST, Array, raised, rounded, working_dtype
from surgeon.lazy.base import (
    BLOCK,
    Computed,
    LazyTensor,
    Piece,
    Scratch,
    TensorSpec,
)
from surgeon.regions import Region


class Kernel(Protocol):
    """Arithmetic on one block: raised operands in, values out (into `out`, which is returned)."""

    def __call__(self, blocks: Sequence[Array], statistics: Any, out: Array) -> Array: ...


class Operands:
    """The operands of a tensor, to be read block by block; for statistics."""

    def __init__(self, tensors: tuple[LazyTensor, ...], scratch: Scratch) -> None:
        self.tensors = tensors
        self._scratch = scratch

    def blocks(self) -> Iterator[list[Array]]:
        """Yield all operands' raised blocks, in order; valid until the next one is asked for."""
        count = self.tensors[0].spec.count
        for start in range(0, count, BLOCK):
            with self._scratch.scope():
                yield raised_blocks(self.tensors, start, min(start + BLOCK, count), self._scratch)


def raised_blocks(
    tensors: Sequence[LazyTensor],
    start: int,
    stop: int,
    scratch: Scratch,
    working: np.dtype[Any] | None = None,
) -> list[Array]:
    """Return elements start to stop of each tensor, raised to `working` (their common dtype)."""
    if working is None:
        working = working_dtype(*(tensor.spec.dtype for tensor in tensors))
    return [_raised_block(tensor, start, stop, scratch, working) for tensor in tensors]


def _raised_block(
    tensor: LazyTensor, start: int, stop: int, scratch: Scratch, working: np.dtype[Any]
) -> Array:
    block = scratch.take(working, stop - start)
    with scratch.scope():
        stored = tensor.elements(start, stop, scratch)
        if working == np.float64 and DTYPES[tensor.spec.dtype].bits < 32:
            narrow = scratch.take(np.float32, stop - start)
            np.copyto(block, raised(stored, tensor.spec.dtype, narrow))
        else:
            raised(stored, tensor.spec.dtype, block)
    return block


@dataclass(frozen=True, eq=False)
class Elementwise:
    """Arithmetic element by element, once a few numbers per tensor are known.

    `working` is the dtype to compute in, by default the operands' own. Where a result does not fit
    into the spec's dtype, `explain` is given the operands, to raise what is wrong with them.
    """

    spec: TensorSpec
    kernel: Kernel
    operands: tuple[LazyTensor, ...]
    statistics: Callable[[Operands], Any] | None = None
    working: np.dtype[Any] | None = None
    explain: Callable[[Sequence[Array]], None] | None = None

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        stored = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        with scratch.scope():
            values, fits = self._values(start, stop, scratch, self.working)
            if not fits and self.explain and values.dtype == np.float32:
                # Sums of float32 may overflow although their mean does not.
                values, fits = self._values(start, stop, scratch, np.dtype(np.float64))
            spare = scratch.take(np.uint32, stop - start)
            rounded(values, self.spec.dtype, stored, spare, finite=fits)
        return stored

    def _values(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> tuple[Array, bool]:
        """Return the kernel's values, and whether they are finite and fit into the dtype."""
        statistics = scratch.known(self, self._known) if self.statistics else None
        blocks = raised_blocks(self.operands, start, stop, scratch, working)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            values = self.kernel(blocks, statistics, scratch.take(blocks[0].dtype, stop - start))
        if DTYPES[self.spec.dtype].kind != "float" or not len(values):
            return values, True
        largest = LARGEST[self.spec.dtype]
        fits = float(values.max()) <= largest and float(values.min()) >= -largest  # false for NaN
        if not fits and self.explain and values.dtype != np.float32:
            self.explain(blocks)
        return values, fits

    def _known(self, scratch: Scratch) -> Any:
        return self.statistics(Operands(self.operands, scratch)) if self.statistics else None

    def new(self) -> tuple[Region, ...]:
        return self.operands[0].new() if len(self.operands) == 1 else ()

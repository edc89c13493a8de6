"""Tensors that are arithmetic on others, streamed in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    Computed,
    LazyTensor,
    Piece,
    Scratch,
    TensorSpec,
)
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Block
from surgeon.numeric.dtypes import DTYPES, SPARE, Array, downcast_fits, upcast, working_dtype

_FLOAT64 = np.dtype(np.float64)


class Blocks(list[Array]):
    """The same elements of several tensors, upcast; `start` is where in the tensors they begin."""

    start: int

    def __init__(self, blocks: Iterable[Array], start: int) -> None:
        super().__init__(blocks)
        self.start = start


class StoredBlocks(list[Block]):
    """The same elements of several tensors, as they are stored; and where they begin."""

    start: int

    def __init__(self, blocks: Iterable[Block], start: int) -> None:
        super().__init__(blocks)
        self.start = start


class Kernel(Protocol):
    """Arithmetic on one block: upcast operands in, values out (into `out`, which is returned)."""

    def __call__(self, blocks: Blocks, statistics: Any, out: Array) -> Array: ...


class CompiledForm(Protocol):
    """A kernel's arithmetic in one compiled loop: stored operands in, `out` as `dtype` stores it.

    Returns whether all values are finite and fit into the dtype, as `downcast_fits` does.
    """

    def __call__(self, blocks: StoredBlocks, statistics: Any, dtype: str, out: Array) -> bool: ...


def step_of(run: int) -> int:
    """Return how many elements make a block of whole runs of so many."""
    return max(1, BLOCK // run) * run


class Operands:
    """The operands of a tensor, to be read block by block; for statistics."""

    def __init__(
        self, tensors: tuple[LazyTensor, ...], scratch: Scratch, step: int = BLOCK
    ) -> None:
        self.tensors = tensors
        self._scratch = scratch
        self._step = step

    def take(self, dtype: type, count: int) -> Array:
        """Return an array that is there for as long as the last blocks are."""
        return self._scratch.take(dtype, count)

    @property
    def are_compiled(self) -> bool:
        """Whether compiled loops read them all; `stored_blocks` is for these."""
        return compiled.knows(*(tensor.spec.dtype for tensor in self.tensors))

    def stored_blocks(self) -> Iterator[StoredBlocks]:
        """Yield all operands' blocks, in order, as they are stored; otherwise as `blocks`."""
        count = self.tensors[0].spec.count
        for start in range(0, count, self._step):
            stop = min(start + self._step, count)
            with self._scratch.scope():
                yield stored_blocks(self.tensors, start, stop, self._scratch)

    def blocks(self, working: np.dtype[Any] | None = None) -> Iterator[Blocks]:
        """Yield all operands' blocks, in order, upcast to `working` (their common dtype).

        They are read-only, and valid until the next ones are asked for.
        """
        count = self.tensors[0].spec.count
        for start in range(0, count, self._step):
            stop = min(start + self._step, count)
            with self._scratch.scope():
                yield upcast_blocks(self.tensors, start, stop, self._scratch, working)


def stored_blocks(
    tensors: Sequence[LazyTensor], start: int, stop: int, scratch: Scratch
) -> StoredBlocks:
    """Return elements start to stop of each tensor as they are stored."""
    return StoredBlocks(
        (Block(t.elements(start, stop, scratch), t.spec.dtype) for t in tensors), start
    )


def upcast_blocks(
    tensors: Sequence[LazyTensor],
    start: int,
    stop: int,
    scratch: Scratch,
    working: np.dtype[Any] | None = None,
) -> Blocks:
    """Return elements start to stop of each tensor, upcast to `working` (their common dtype)."""
    if working is None:
        working = working_dtype(*(tensor.spec.dtype for tensor in tensors))
    return Blocks((_raised_block(t, start, stop, scratch, working) for t in tensors), start)


def _raised_block(
    tensor: LazyTensor, start: int, stop: int, scratch: Scratch, working: np.dtype[Any]
) -> Array:
    dtype = tensor.spec.dtype
    if DTYPES[dtype].storage == working:
        return tensor.elements(start, stop, scratch)
    block = scratch.take(working, stop - start)
    with scratch.scope():
        stored = tensor.elements(start, stop, scratch)
        upcast(stored, dtype, block)
    return block


@dataclass(frozen=True, eq=False)
class Blockwise:
    """Arithmetic element by element, once a few numbers per tensor are known.

    `working` is the dtype to compute in, by default the operands' own. Where a result does not fit
    into the spec's dtype, `explain` is given the operands, to raise what is wrong with them. The
    kernel gets whole runs of `run` elements, such as rows, one after the other. `held_bytes` is the
    most that statistics and kernel take besides a few arrays of a block. `about` holds the
    parameters that the arithmetic was made with, to be shown. A kernel that `copies` leaves what
    NaNs say; those that arithmetic makes are all the same. Where there is a `compiled` form, and
    compiled loops know all dtypes, that runs instead, with the kernel for what does not fit.
    """

    spec: TensorSpec
    kernel: Kernel
    operands: tuple[LazyTensor, ...]
    statistics: Callable[[Operands], Any] | None = None
    working: np.dtype[Any] | None = None
    explain: Callable[[Sequence[Array]], None] | None = None
    run: int = 1
    held_bytes: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    copies: bool = False
    compiled: CompiledForm | None = None

    @property
    def step(self) -> int:
        """The elements that are best asked for at once."""
        return step_of(self.run)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        first, last = start // self.run * self.run, -(-stop // self.run) * self.run
        stored = scratch.take(DTYPES[self.spec.dtype].storage, last - first)
        with scratch.scope():
            if self.compiled and self._write_compiled(first, last, scratch, stored):
                pass
            elif not self._write(first, last, scratch, stored, self.working) and self.explain:
                # Sums of float32 may overflow although their mean does not.
                self._write(first, last, scratch, stored, _FLOAT64)
        return stored[start - first : stop - first] if self.run > 1 else stored

    def _write(
        self, start: int, stop: int, scratch: Scratch, out: Array, working: np.dtype[Any] | None
    ) -> bool:
        """Write the kernel's values; return whether they are finite and fit into the dtype.

        Where values in float64 do not, and that is to be explained, it is.
        """
        statistics = scratch.known(self, self._known) if self.statistics else None
        blocks = upcast_blocks(self.operands, start, stop, scratch, working)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            values = self.kernel(blocks, statistics, scratch.take(blocks[0].dtype, stop - start))
        spare = scratch.take(np.uint32, SPARE * (stop - start))
        fits = downcast_fits(values, self.spec.dtype, out, spare, one_nan=not self.copies)
        if not fits and self.explain and values.dtype != np.float32:
            self.explain(blocks)
            return True
        return fits

    def _write_compiled(self, start: int, stop: int, scratch: Scratch, out: Array) -> bool:
        """Write in one compiled loop; return whether there is one, and nothing to be explained."""
        dtypes = (tensor.spec.dtype for tensor in self.operands)
        if not self.compiled or not compiled.knows(self.spec.dtype, *dtypes):
            return False
        statistics = scratch.known(self, self._known) if self.statistics else None
        with scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            blocks = stored_blocks(self.operands, start, stop, scratch)
            fits = self.compiled(blocks, statistics, self.spec.dtype, out)
        return fits or self.explain is None

    def _known(self, scratch: Scratch) -> Any:
        operands = Operands(self.operands, scratch, self.step)
        return self.statistics(operands) if self.statistics else None

    def new_regions(self) -> tuple[Region, ...]:
        return self.operands[0].new_regions() if len(self.operands) == 1 else ()

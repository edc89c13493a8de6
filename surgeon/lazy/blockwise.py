"""Tensors that are arithmetic on others, streamed in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    Evaluation,
    LazyTensor,
    Request,
    ScratchBytes,
    TensorSpec,
    float64,
    is_without_rounding,
)
from surgeon.lazy.evaluate import ComputedForm, common_working, evaluated
from surgeon.lazy.scratch import Scratch
from surgeon.lazy.stored import is_stored
from surgeon.numeric import compiled
from surgeon.numeric.blas import one_thread
from surgeon.numeric.compiled import Block
from surgeon.numeric.dtypes import (
    DTYPES,
    LARGEST,
    SPARE,
    Array,
    downcast_fits,
    rounding_bytes,
)

# So many blocks are one for a compiled loop over stored bytes: it takes a chunk of them at a time,
# and Python a sixteenth of a nanosecond for each element.
_WIDE = 4
# What finding a threshold takes for each element of such a block: a place and a magnitude.
_NOTED_BYTES = 12
# A kernel's own arrays beside its operands and its result: one for each operand, and these.
_KERNEL_ARRAYS = 2


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
    """The operands of a tensor, to be read block by block; for statistics.

    Sums are those of blocks of `step` elements; what adds nothing up may take `wide` ones. `whole`
    are the only ones, where they were read already.
    """

    def __init__(
        self,
        tensors: tuple[LazyTensor, ...],
        scratch: Scratch,
        step: int = BLOCK,
        wide: int = 0,
        whole: StoredBlocks | None = None,
    ) -> None:
        self.tensors = tensors
        self.step = step
        self._scratch = scratch
        self._wide = wide or step
        self._whole = whole

    def take(self, dtype: type, count: int) -> Array:
        """Return an array that is there for as long as the last blocks are."""
        return self._scratch.take(dtype, count)

    @property
    def are_compiled(self) -> bool:
        """Whether compiled loops read them all; `stored_blocks` is for these."""
        return are_compiled((), self.tensors)

    def stored_blocks(self, *, wide: bool = False) -> Iterator[StoredBlocks]:
        """Yield all operands' blocks, in order, as they are stored; otherwise as `blocks`."""
        if self._whole is not None:
            yield self._whole
            return
        count, step = self.tensors[0].spec.count, self._wide if wide else self.step
        for start in range(0, count, step):
            stop = min(start + step, count)
            with self._scratch.scope():
                yield stored_blocks(self.tensors, start, stop, self._scratch)

    def blocks(self, working: np.dtype[Any] | None = None) -> Iterator[Blocks]:
        """Yield all operands' blocks, in order, upcast to `working` (their common dtype).

        They are read-only, and valid until the next ones are asked for.
        """
        count = self.tensors[0].spec.count
        for start in range(0, count, self.step):
            stop = min(start + self.step, count)
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
    dtype = working or common_working(tensors)
    return Blocks([evaluated(Request(t, start, stop, dtype), scratch) for t in tensors], start)


def rounded(tensor: LazyTensor) -> LazyTensor:
    """Return a tensor whose values are those that its dtype has, for what is made of it too."""
    return tensor if tensor.is_exact else Blockwise(tensor.spec, _first, (tensor,), rounds=True)


def _first(blocks: Blocks, statistics: None, out: Array) -> Array:
    return blocks[0]


class _Values(NamedTuple):
    """What a kernel made, and of which blocks."""

    array: Array
    blocks: Blocks


def are_compiled(dtypes: Iterable[str], operands: Sequence[LazyTensor]) -> bool:
    """Say whether compiled loops know these dtypes, and read the operands as they are stored."""
    return all(operand.is_exact for operand in operands) and compiled.knows(
        *dtypes, *(operand.spec.dtype for operand in operands)
    )


# Not frozen, as stored tensors are not: a merge may have 100 000 of them.
@dataclass(eq=False)
class Blockwise(ComputedForm):
    """Arithmetic element by element, once a few numbers per tensor are known.

    Operands that are computed too are not rounded before; nor is this, until it is stored, or with
    `rounds` (a cast) for whatever is made of it. `working` is the dtype to compute in, by default
    the operands' own; what is not rounded is float64. Where a result does not fit into the spec's
    dtype, `explain` is given the operands, to raise what is wrong with them. The kernel gets whole
    runs of `run` elements, such as rows, one after the other. `held_bytes` is the most that
    statistics and kernel take besides a few arrays of a block. `about` holds the parameters that
    the arithmetic was made with, to be shown. A kernel that `copies` leaves what NaNs say; those
    that arithmetic makes are all the same. Where there is a `compiled` form, and compiled loops
    know what the operands are stored as, that runs instead, with the kernel for what does not fit.
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
    rounds: bool = False
    copies: bool = False
    compiled: CompiledForm | None = None

    initialisers = None

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return replace(self, operands=operands)

    @property
    def is_in_place(self) -> bool:
        return len(self.operands) == 1 and self.operands[0].spec.shape == self.spec.shape

    @property
    def is_exact(self) -> bool:
        return self.rounds or is_without_rounding(self.spec.dtype)

    @property
    def is_computed_at_once(self) -> bool:
        return self.statistics is not None

    @cached_property
    def step(self) -> int:
        return step_of(self.run) * (_WIDE if self._is_wide else 1)

    @cached_property
    def _is_wide(self) -> bool:
        """Whether a compiled loop takes it as it lies in files, rows that belong together aside."""
        return self.run == 1 and self._is_compiled and all(map(is_stored, self.operands))

    @cached_property
    def _is_compiled(self) -> bool:
        """Whether a compiled loop does it, of operands as they are stored."""
        return bool(self.compiled) and are_compiled((self.spec.dtype,), self.operands)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        own = DTYPES[self.spec.dtype].storage.itemsize
        count, wide = (min(self.spec.count, step) for step in (step_of(self.run), self.step))
        width = max(self._computing.itemsize, 4)
        operands = len(self.operands)
        arrays = (2 * operands + 1 + _KERNEL_ARRAYS) * width + own + rounding_bytes(self.spec.dtype)
        stored = sum(DTYPES[operand.spec.dtype].storage.itemsize for operand in self.operands)
        block = max(count * arrays, wide * (stored + own + _NOTED_BYTES))
        return ScratchBytes(self.held_bytes, block, count * width * (operands - 1))

    @cached_property
    def _computing(self) -> np.dtype[Any]:
        """The dtype to compute in: what rounds float32 alone is not exact on unrounded values."""
        common = common_working(self.operands)
        return common if common == float64() else self.working or common

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Evaluation:
        first, last = start // self.run * self.run, -(-stop // self.run) * self.run
        with scratch.scope() as scope:
            if working is None:
                made = scratch.take(DTYPES[self.spec.dtype].storage, last - first)
                with scratch.scope():
                    yield from self._store(first, last, scratch, made)
            else:
                values = yield from self._values(first, last, scratch, float64())
                self._look_at(values)
                made = values.array
                if made.dtype != working:
                    made = scratch.take(working, last - first)
                    np.copyto(made, values.array, casting="same_kind")
            scope.keep(made)
        return made[start - first : stop - first] if self.run > 1 else made

    def _store(
        self, start: int, stop: int, scratch: Scratch, out: Array
    ) -> Generator[Request, Array, None]:
        """Write the values as they are stored: in one compiled loop, or else by the kernel."""
        if self._is_compiled:
            statistics = scratch.known(self, self._known) if self.statistics else None
            with scratch.scope():
                if self._is_read_twice and stop - start == self.spec.count:
                    stored = self._whole(scratch)
                else:
                    stored = StoredBlocks((), start)
                    for operand in self.operands:
                        block = yield Request(operand, start, stop)
                        stored.append(Block(block, operand.spec.dtype))
                if self._write_compiled(stored, statistics, out):
                    return
        for first in range(start, stop, step_of(self.run)):
            last = min(first + step_of(self.run), stop)
            with scratch.scope():
                yield from self._store_by_kernel(
                    first, last, scratch, out[first - start : last - start]
                )

    def _store_by_kernel(
        self, start: int, stop: int, scratch: Scratch, out: Array
    ) -> Generator[Request, Array, None]:
        spare = scratch.take(np.uint32, SPARE * (stop - start))
        # Sums of float32 may overflow although their mean does not.
        for computing in dict.fromkeys((self._computing, float64())):
            values = yield from self._values(start, stop, scratch, computing)
            fits = downcast_fits(values.array, self.spec.dtype, out, spare, one_nan=not self.copies)
            if fits or not self.explain:
                return
            if values.array.dtype != np.float32:
                self.explain(values.blocks)
                return

    def _write_compiled(self, stored: StoredBlocks, statistics: Any, out: Array) -> bool:
        """Write in one compiled loop; say whether there is nothing to be explained."""
        assert self.compiled
        with np.errstate(over="ignore", invalid="ignore"):
            fits = self.compiled(stored, statistics, self.spec.dtype, out)
        return fits or self.explain is None

    def _values(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any]
    ) -> Generator[Request, Array, _Values]:
        """Return the kernel's values, and the blocks that they are made of."""
        statistics = scratch.known(self, self._known) if self.statistics else None
        blocks = Blocks((), start)
        for operand in self.operands:
            blocks.append((yield Request(operand, start, stop, working)))
        with np.errstate(over="ignore", invalid="ignore"):  # looked at by whoever takes them
            values = self.kernel(blocks, statistics, scratch.take(blocks[0].dtype, stop - start))
        return _Values(values, blocks)

    def _look_at(self, values: _Values) -> None:
        """Have explained what is not finite, where values go on unrounded; NaNs become one."""
        array = values.array
        if not len(array) or array.dtype.kind != "f":
            return
        high, low = float(np.maximum.reduce(array)), float(np.minimum.reduce(array))
        if high <= LARGEST["F64"] and low >= -LARGEST["F64"]:  # false for NaN
            return
        if self.explain:
            self.explain(values.blocks)
        if not self.copies:
            array[np.isnan(array)] = np.nan

    def prepare(self, scratch: Scratch) -> None:
        if self.statistics and self.spec.count:
            scratch.known(self, self._known)

    def known(self, scratch: Scratch) -> Any:
        """Return what its statistics found, which is found once."""
        return scratch.known(self, self._known)

    def _known(self, scratch: Scratch) -> Any:
        whole = self._whole(scratch) if self._is_read_twice else None
        operands = Operands(self.operands, scratch, step_of(self.run), self.step, whole)
        if not self.statistics:
            return None
        with one_thread():
            return self.statistics(operands)

    @property
    def _is_read_twice(self) -> bool:
        """Whether its operands are one small block, for statistics and then for itself."""
        return self.statistics is not None and self._is_wide and self.spec.count <= BLOCK

    def _whole(self, scratch: Scratch) -> StoredBlocks:
        """Return all of its operands, read once for statistics and itself."""

        def read(scratch: Scratch) -> StoredBlocks:
            found = stored_blocks(self.operands, 0, self.spec.count, scratch)
            return StoredBlocks((Block(b.elements.copy(), b.dtype) for b in found), 0)

        return scratch.known(self.operands, read)

    def new_regions(self) -> tuple[Region, ...]:
        return self._new_regions

    def __post_init__(self) -> None:
        one = len(self.operands) == 1
        self._new_regions = self.operands[0].new_regions() if one else ()

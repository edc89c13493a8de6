"""What every form of tensor answers; two names bound to one LazyTensor are tied.

So forms compare by identity. Blocks travel as flat arrays, in the dtype's *storage* (see dtypes.py)
or, on the way from one arithmetic to the next, as unrounded values; they are read-only for whoever
asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.scratch import Scratch
from surgeon.numeric.dtypes import DTYPES, Array

# Elements per block: a kernel's operands, result and scratch stay in a core's cache (1 MiB for two
# float32 operands), and calling NumPy takes a tenth of the time.
BLOCK = 64 * 1024
NOTHING: Mapping[str, Any] = MappingProxyType({})


@cache
def float64() -> np.dtype[Any]:
    """Return the dtype to compute in, unless float32 is exact."""
    return np.dtype(np.float64)


def is_without_rounding(dtype: str) -> bool:
    """Say whether values are stored in a dtype as they are computed."""
    return DTYPES[dtype].kind != "float" or DTYPES[dtype].bits == 64


@dataclass(frozen=True)
class TensorSpec:
    """A dtype (by its safetensors name) and a shape."""

    dtype: str
    shape: tuple[int, ...]

    # Kept, since many tensors share a spec and each of them is asked several times.
    @cached_property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @cached_property
    def size_bits(self) -> int:
        """The number of bits that they take."""
        return self.count * DTYPES[self.dtype].bits

    @cached_property
    def size_bytes(self) -> int:
        """The number of bytes that they take in a file."""
        return self.size_bits // 8

    def resized(self, dim: int, size: int) -> TensorSpec:
        """Return the spec with one dimension of another size."""
        return TensorSpec(self.dtype, (*self.shape[:dim], size, *self.shape[dim + 1 :]))

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        return f"{self.dtype} ({sizes}{',' if len(self.shape) == 1 else ''})"


class ByteSource(Protocol):
    """An open input file that any worker may read at any place."""

    path: Path

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from `offset` on."""
        ...

    def whole(self, offset: int, size_bytes: int) -> Array | None:
        """Return bytes of what is far away, kept for scattered reads; None: it lies near enough."""
        ...

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file is no longer what it was when it was opened."""
        ...

    def fileno(self) -> int | None:
        """The file descriptor, for byte-range copies; None where the bytes are in memory."""
        ...


class ByteRange(NamedTuple):
    """Bytes of an input file that are, unchanged, bytes of a tensor."""

    file: ByteSource
    offset: int
    size_bytes: int


class Computed(NamedTuple):
    """Elements of a tensor that have to be evaluated."""

    tensor: LazyTensor
    start: int
    stop: int


class Part(NamedTuple):
    """Elements that are, unchanged, elements of another tensor."""

    tensor: LazyTensor
    start: int
    stop: int


Piece = ByteRange | Computed


class Request(NamedTuple):
    """Elements that a form needs of another: their storage, or their values in a dtype."""

    tensor: LazyTensor
    start: int
    stop: int
    working: np.dtype[Any] | None = None


# A form asks for blocks of its operands, and returns its own.
Evaluation = Generator[Request, Any, Array]


class ScratchBytes(NamedTuple):
    """What a form takes of a worker's memory; its operands count for themselves.

    `held` stays until the tensor is written; `block` is taken while a block is made, and `under`
    of it while the operands' blocks are.
    """

    held: int
    block: int
    under: int


class LazyTensor(Protocol):
    """A tensor not computed yet: whatever anybody asks of one is a member here."""

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The tensors that this one is made of."""
        ...

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        """Return the same form over other operands of the same specs."""
        ...

    # Its bytes

    @property
    def byte_origin(self) -> tuple[object, ...]:
        """What tensors share that stand for the same bytes of an input file, as after `untie`."""
        ...

    def locate(self, start: int, stop: int) -> Iterator[Piece | Part]:
        """Say where elements start to stop are: in files, in an operand, or still to be made."""
        ...

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Elements start to stop as byte ranges of input files, or as work to be done."""
        ...

    # Its values

    @property
    def is_exact(self) -> bool:
        """Whether rounding to the dtype changes nothing; else it waits until a tensor is stored."""
        ...

    @property
    def is_computed_at_once(self) -> bool:
        """Whether something has to be known of the tensor before its first element is."""
        ...

    @property
    def step(self) -> int:
        """The elements that are best asked for at once."""
        ...

    @property
    def scratch_bytes(self) -> ScratchBytes:
        """The most memory that writing it takes."""
        ...

    def prepare(self, scratch: Scratch) -> None:
        """Find out what has to be known; its operands' turn was before."""
        ...

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array | Evaluation:
        """Make elements start to stop: their storage, or where rounding waits, values too."""
        ...

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        """The storage of elements start to stop, flat."""
        ...

    def values(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None = None
    ) -> Array:
        """Elements start to stop, flat, upcast to `working`; what is computed is not rounded.

        Without `working`, to float64.
        """
        ...

    # What was done to it

    def new_regions(self) -> tuple[Region, ...]:
        """The disjoint regions that a recipe created."""
        ...

    @property
    def initialisers(self) -> tuple[str, ...] | None:
        """The names of what made values that no input has; None where it creates nothing."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """The parameters that its arithmetic was made with, to be shown."""
        ...

    @property
    def is_move(self) -> bool:
        """Whether each element is one of its operands', moved and changed in nothing."""
        ...

    @property
    def is_in_place(self) -> bool:
        """Whether each element is made of that in the same place of its one operand."""
        ...


def walk(tensor: LazyTensor) -> Iterator[LazyTensor]:
    """Yield a tensor and everything it is made of, each once, outermost first."""
    seen: set[int] = set()
    pending = [tensor]
    while pending:
        form = pending.pop()
        if id(form) not in seen:
            seen.add(id(form))
            yield form
            pending.extend(reversed(form.operands))


def bottom_up(tensor: LazyTensor) -> Iterator[LazyTensor]:
    """Yield everything that a tensor is made of, each once after its operands, and itself last."""
    seen: set[int] = set()
    pending = [(tensor, False)]
    while pending:
        form, is_last = pending.pop()
        if is_last:
            yield form
        elif id(form) not in seen:
            seen.add(id(form))
            pending.append((form, True))
            pending += [(operand, False) for operand in reversed(form.operands)]


def is_computed_at_once(tensor: LazyTensor) -> bool:
    """Say whether something has to be known of a tensor, or below, before its first element is."""
    return any(form.is_computed_at_once for form in walk(tensor))


def transplanted(tensor: LazyTensor, leaf: Callable[[LazyTensor], LazyTensor]) -> LazyTensor:
    """Return the same moves over other leaves: over what `leaf` gives for all that is no move.

    What is changed in place has moved nothing, and is changed no more.
    """
    made: dict[int, LazyTensor] = {}
    pending = [tensor]
    while pending:
        form = pending[-1]
        sources = form.operands if form.is_move or form.is_in_place else ()
        if waiting := [source for source in sources if id(source) not in made]:
            pending += reversed(waiting)
            continue
        pending.pop()
        if id(form) not in made:
            found = tuple(made[id(source)] for source in sources)
            if form.is_in_place:
                (made[id(form)],) = found
            else:
                made[id(form)] = form.rebuilt(found) if form.is_move else leaf(form)
    return made[id(tensor)]


def detached(tensor: LazyTensor) -> LazyTensor:
    """Return the same tensor under an identity of its own."""
    return copy(tensor)

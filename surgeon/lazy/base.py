"""Tensors that are not computed yet: a spec known now, values made when they are written.

Two names bound to one LazyTensor are tied, so forms compare by identity. Blocks travel as flat
arrays in the dtype's *storage* (see dtypes.py); they are read-only for whoever asked for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from surgeon.base.regions import Region, whole
from surgeon.numeric.dtypes import DTYPES, SPARE, Array, downcast

# Elements per block: a kernel's operands, result and scratch stay in a core's cache (1 MiB for two
# float32 operands), and calling NumPy takes a tenth of the time.
BLOCK = 64 * 1024
# Views that a worker keeps of its scratch; every odd size of a last block needs its own.
_MOST_VIEWS = 1000


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

    def mapped(self, offset: int, size_bytes: int) -> Array:
        """Return a read-only uint8 view of bytes of the file, for scattered reads."""
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


Piece = ByteRange | Computed


Value = TypeVar("Value")


class Scratch:
    """Arrays that one worker uses again for every block; `take` never zeroes.

    Besides, what that worker knows of the tensor at hand: see `known`.
    """

    def __init__(self) -> None:
        self._slots: list[Array] = []
        self._views: dict[tuple[int, np.dtype[Any] | type, int], Array] = {}
        self._used = 0
        self._known: dict[int, tuple[object, Any]] = {}

    def known(self, owner: object, compute: Callable[[Scratch], Value]) -> Value:
        """Return what `compute` gave for this owner, as long as it is not forgotten."""
        if id(owner) not in self._known:
            with self.scope():
                self._known[id(owner)] = owner, compute(self)
        value: Value = self._known[id(owner)][1]
        return value

    def forget(self, tensor: LazyTensor) -> None:
        """Let go of everything that is known but of what this tensor is made of."""
        if self._known:
            needed = {id(form) for form in walk(tensor)}
            self._known = {key: kept for key, kept in self._known.items() if key in needed}

    def take(self, dtype: np.dtype[Any] | type, count: int) -> Array:
        """Return an array of `count` elements, valid until the enclosing scope ends."""
        key = (self._used, dtype, count)
        view = self._views.get(key)
        if view is None:
            if len(self._views) > _MOST_VIEWS:
                self._views.clear()
            view = self._views[key] = self._view(np.dtype(dtype), count)
        self._used += 1
        return view

    def _view(self, dtype: np.dtype[Any], count: int) -> Array:
        size_bytes = dtype.itemsize * count
        if self._used == len(self._slots):
            self._slots.append(np.empty(size_bytes, np.uint8))
        elif self._slots[self._used].nbytes < size_bytes:
            self._slots[self._used] = np.empty(size_bytes, np.uint8)
            self._views = {key: v for key, v in self._views.items() if key[0] != self._used}
        return self._slots[self._used][:size_bytes].view(dtype)

    def scope(self) -> _Scope:
        """Give back, at the end of a `with`, what was taken inside."""
        return _Scope(self)


class _Scope:
    """Not a generator: there are several in each block."""

    __slots__ = ("_before", "_scratch")

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch

    def __enter__(self) -> None:
        self._before = self._scratch._used

    def __exit__(self, *failure: object) -> None:
        self._scratch._used = self._before


class LazyTensor(Protocol):
    """What every form answers; the executor asks for nothing else."""

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The tensors that this one is made of."""
        ...

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Elements start to stop as byte ranges of input files, or as work to be done."""
        ...

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        """The storage of elements start to stop, flat."""
        ...

    def new_regions(self) -> tuple[Region, ...]:
        """The disjoint regions that a recipe created."""
        ...


class Stream(NamedTuple):
    """A random stream of its own: keyed by recipe seed, step and tensor name, never by order."""

    seed: int
    step: str
    name: str

    def generator(self, chunk: int) -> np.random.Generator:
        """Return the generator of one chunk; chunks are independent, so blocks may be too."""
        return np.random.Generator(np.random.Philox(key=self.key, counter=chunk << 128))

    @property
    def key(self) -> int:
        """The key of its Philox generators."""
        text = f"surgeon 1\0{self.seed}\0{self.step}\0{self.name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


class Initialiser(Protocol):
    """Named initial values; see initialisers/."""

    @property
    def name(self) -> str: ...

    @property
    def at_once_bytes(self) -> tuple[int, int]:
        """Bytes per element that stay until it is written, and that are used meanwhile."""
        ...

    @property
    def operands(self) -> tuple[LazyTensor, ...]: ...

    def values(
        self, spec: TensorSpec, start: int, stop: int, stream: Stream, scratch: Scratch
    ) -> Array:
        """Elements start to stop of a tensor of this spec, as float64 or float32."""
        ...


# Not frozen, which takes four times as long to make: a checkpoint may have 100 000 of them.
@dataclass(eq=False, slots=True)
class Stored:
    """Bytes that lie in an input file."""

    file: ByteSource
    offset: int
    spec: TensorSpec
    operands: tuple[LazyTensor, ...] = ()

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        bits = DTYPES[self.spec.dtype].bits
        yield ByteRange(self.file, self.offset + start * bits // 8, (stop - start) * bits // 8)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        bits = DTYPES[self.spec.dtype].bits
        first, last = start * bits // 8, stop * bits // 8
        buffer = scratch.take(np.uint8, last - first)
        self.file.read_into(self.offset + first, buffer.data)
        return buffer.view(DTYPES[self.spec.dtype].storage)

    def new_regions(self) -> tuple[Region, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Strided:
    """A view with strides (in elements) over stored bytes: transposed, expanded, overlapping.

    `storage` is the flat run of elements that the view reaches, from its first one.
    """

    storage: Stored
    strides: tuple[int, ...]
    shape: tuple[int, ...]

    @cached_property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.storage.spec.dtype, self.shape)

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.storage,)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        index = np.arange(start, stop)
        address = np.zeros(stop - start, np.int64)
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            index, digit = np.divmod(index, size)
            address += digit * stride
        # Mapped, since a block of a transposed view reaches over all of its storage.
        mapped = self.storage.file.mapped(self.storage.offset, self.storage.spec.size_bytes)
        np.take(mapped.view(out.dtype), address, out=out)
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Fresh:
    """Values that an initialiser makes."""

    spec: TensorSpec
    initialiser: Initialiser
    stream: Stream

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return self.initialiser.operands

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        with scratch.scope():
            values = self.initialiser.values(self.spec, start, stop, self.stream, scratch)
            spare = scratch.take(np.uint32, SPARE * (stop - start))
            downcast(values, self.spec.dtype, out, spare)
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return (whole(self.spec.shape),)


@dataclass(frozen=True, eq=False)
class _Same:
    """The values of another tensor, under an identity of its own."""

    source: LazyTensor

    @cached_property
    def spec(self) -> TensorSpec:
        return self.source.spec

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        return self.source.pieces(start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        return self.source.elements(start, stop, scratch)


@dataclass(frozen=True, eq=False)
class Sharded(_Same):
    """A tensor that lies in several parts in the input, and is one for all that a recipe says."""

    def new_regions(self) -> tuple[Region, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Copied(_Same):
    """The values of another tensor, created by the recipe."""

    def new_regions(self) -> tuple[Region, ...]:
        return (whole(self.spec.shape),)


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


def detached(tensor: LazyTensor) -> LazyTensor:
    """Return the same tensor under an identity of its own."""
    return copy(tensor)

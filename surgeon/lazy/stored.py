"""Tensors that are made of no other: bytes of input files, and values of initialisers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

from surgeon.base.deferred import np
from surgeon.base.regions import Region, boxes, count, whole
from surgeon.lazy.base import (
    BLOCK,
    NOTHING,
    ByteRange,
    ByteSource,
    Computed,
    LazyTensor,
    Piece,
    ScratchBytes,
    TensorSpec,
)
from surgeon.lazy.evaluate import ComputedForm, Form
from surgeon.lazy.scratch import Scratch
from surgeon.lazy.views import View
from surgeon.numeric.blas import one_thread
from surgeon.numeric.dtypes import DTYPES, SPARE, Array, downcast, rounding_bytes

# Per element of a block of an initialiser: float64 values, the chunk they are drawn in, what of it
# was rejected.
_FRESH = 4 * 8
# Bytes of a tensor in another order that are made, and kept, at a time: as many as a worker writes
# in one go. A narrow block would take all of the source's rows, or worse, compute all of them, for
# itself.
STRIP = 16 << 20


# Not frozen, which takes four times as long to make: a checkpoint may have 100 000 of them.
@dataclass(eq=False, slots=True)
class Stored(Form):
    """Bytes that lie in an input file."""

    file: ByteSource
    offset: int
    spec: TensorSpec
    operands: tuple[LazyTensor, ...] = ()

    step = BLOCK
    is_exact = True
    is_computed_at_once = False
    is_move = False
    is_in_place = False
    about = NOTHING
    initialisers = None

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return self

    @property
    def byte_origin(self) -> tuple[object, ...]:
        return id(self.file), self.offset, self.spec

    @property
    def scratch_bytes(self) -> ScratchBytes:
        return ScratchBytes(0, _block_bytes(self.spec), 0)

    def locate(self, start: int, stop: int) -> Iterator[Piece]:
        bits = DTYPES[self.spec.dtype].bits
        yield ByteRange(self.file, self.offset + start * bits // 8, (stop - start) * bits // 8)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        return self.evaluate(start, stop, scratch, None)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array:
        bits = DTYPES[self.spec.dtype].bits
        first, last = start * bits // 8, stop * bits // 8
        buffer = scratch.take(np.uint8, last - first)
        self.file.read_into(self.offset + first, buffer.data)
        return buffer.view(DTYPES[self.spec.dtype].storage)

    def new_regions(self) -> tuple[Region, ...]:
        return ()


def _block_bytes(spec: TensorSpec, more: int = 0) -> int:
    return min(spec.count, BLOCK) * (DTYPES[spec.dtype].storage.itemsize + more)


class _Held:
    """The strip of a view that a worker read last, and where the last block ended."""

    def __init__(self) -> None:
        self.begin = self.then = 0
        self.values: Array = np.empty(0, np.uint8)


@dataclass(frozen=True, eq=False)
class Strided(Form):
    """A view with strides (in elements) over stored bytes: transposed, expanded, overlapping.

    `storage` is the flat run of elements that the view reaches, from its first one.
    """

    storage: Stored
    strides: tuple[int, ...]
    shape: tuple[int, ...]

    step = BLOCK
    is_exact = True
    is_computed_at_once = False
    is_move = False
    is_in_place = False
    about = NOTHING
    initialisers = None

    @cached_property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.storage.spec.dtype, self.shape)

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.storage,)

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        (storage,) = operands
        assert isinstance(storage, Stored)
        return Strided(storage, self.strides, self.shape)

    @property
    def byte_origin(self) -> tuple[object, ...]:
        return (*self.storage.byte_origin, self.strides, self.shape)

    @cached_property
    def view(self) -> View:
        """How it lies in its file."""
        storage = DTYPES[self.spec.dtype].storage
        strides = tuple(stride * storage.itemsize for stride in self.strides)
        return View(self.storage.file, self.storage.offset, storage, self.shape, strides)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        held = min(self.spec.count * self.view.dtype.itemsize, STRIP)
        return ScratchBytes(held, _block_bytes(self.spec), 0)

    def locate(self, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array:
        held: _Held = scratch.known(self, lambda _: _Held())
        if not held.begin <= start <= stop <= held.begin + len(held.values):
            # Blocks of a transposed view reach over all of its storage, so those that follow one
            # another are read together.
            if start != held.then:
                held.then = stop
                return self._read(scratch.take(self.view.dtype, stop - start), start, scratch)
            size = max(
                min(STRIP // self.view.dtype.itemsize, self.spec.count - start), stop - start
            )
            if len(held.values) != size:
                held.values = np.empty(size, self.view.dtype)
            held.begin = self.spec.count  # should it not be read
            self._read(held.values, start, scratch)
            held.begin = start
        held.then = stop
        out = scratch.take(self.view.dtype, stop - start)
        out[:] = held.values[start - held.begin : stop - held.begin]
        return out

    def _read(self, out: Array, start: int, scratch: Scratch) -> Array:
        filled = 0
        for box in boxes(self.shape, start, start + len(out)):
            part = out[filled : filled + count(box)]
            self.view.read_into(part.reshape([b - a for a, b in box]), box, scratch)
            filled += len(part)
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return ()


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


@dataclass(frozen=True, eq=False)
class Fresh(ComputedForm):
    """Values that an initialiser makes: those that its dtype has."""

    spec: TensorSpec
    initialiser: Initialiser
    stream: Stream

    step = BLOCK
    is_exact = True
    is_in_place = False
    about = NOTHING

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return self.initialiser.operands

    @property
    def initialisers(self) -> tuple[str, ...]:
        return (self.initialiser.name,)

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        if operands == self.operands:
            return self
        raise TypeError("an initialiser's values are of the tensors that it was made for")

    @property
    def is_computed_at_once(self) -> bool:
        return any(self.initialiser.at_once_bytes)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        block = _block_bytes(self.spec, _FRESH + rounding_bytes(self.spec.dtype))
        return ScratchBytes(self.spec.count * sum(self.initialiser.at_once_bytes), block, block)

    def prepare(self, scratch: Scratch) -> None:
        if self.operands and self.spec.count:
            with scratch.scope():
                self.evaluate(0, 1, scratch, None)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array:
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        with scratch.scope():
            with one_thread():
                values = self.initialiser.values(self.spec, start, stop, self.stream, scratch)
            spare = scratch.take(np.uint32, SPARE * (stop - start))
            downcast(values, self.spec.dtype, out, spare)
        return out

    def new_regions(self) -> tuple[Region, ...]:
        return (whole(self.spec.shape),)


def is_stored(value: object) -> TypeGuard[Stored]:
    """Say whether something is a tensor that lies in one run of a file's bytes."""
    return isinstance(value, Stored)

"""Tensors whose elements are another's in another order, or under another shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from surgeon.base.regions import Region, boxes, count, reshaped, whole
from surgeon.lazy.base import (
    BLOCK,
    ByteRange,
    Computed,
    Copied,
    LazyTensor,
    Piece,
    Scratch,
    Strided,
    TensorSpec,
)
from surgeon.lazy.joined import Joined, Selected
from surgeon.numeric.dtypes import DTYPES, Array

# Bytes of the result that are made, and kept, at a time: as many as a worker writes in one go. A
# narrow block would take all of the source's rows, or worse, compute all of them, for itself.
STRIP = 16 << 20
# What is computed, is computed once per strip, since its rows are: at most so many times, in strips
# as large as that takes.
_PASSES = 8
# Elements of a column that are copied at a time. Rows of some power of two of bytes share few
# places in a cache; from 256 on copying takes five times as long (8192 x 8192, 2 bytes each).
_TILE = 64


@dataclass
class _Held:
    """The strip that a worker made last."""

    number: int
    values: Array


@dataclass(frozen=True, eq=False)
class Rearranged:
    """Another tensor with its dimensions in another order, then with another shape.

    `order` lists the source's dimensions. Where nothing moves, it is the source's bytes.
    """

    source: LazyTensor
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @cached_property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.source.spec.dtype, self.shape)

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @cached_property
    def moves(self) -> bool:
        """Whether any element has another place than in the source."""
        longer = [axis for axis in self.order if self.source.spec.shape[axis] != 1]
        return longer != sorted(longer) and self.spec.count > 1

    @property
    def is_permutation(self) -> bool:
        """Whether the dimensions are the source's, in another order."""
        return self.shape == tuple(self.source.spec.shape[axis] for axis in self.order)

    @cached_property
    def _strip(self) -> int:
        """The elements of a strip."""
        size = max(STRIP // DTYPES[self.spec.dtype].storage.itemsize, 1)
        return size if _is_at_hand(self.source) else max(size, -(-self.spec.count // _PASSES))

    @property
    def is_known_at_once(self) -> bool:
        """Whether one worker makes it all, since several would do the same for their parts."""
        return self.moves and self._strip > STRIP // DTYPES[self.spec.dtype].storage.itemsize

    @property
    def held_bytes(self) -> int:
        """The bytes that are kept between blocks, and taken to make them."""
        if not self.moves:
            return 0
        size = DTYPES[self.spec.dtype].storage.itemsize
        # A block for each selection that cuts the strip out of the source.
        blocks = min(self.spec.count, BLOCK) * (len(self.order) + 1)
        return (min(self.spec.count, self._strip) + blocks) * size

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        if self.moves:
            yield Computed(self, start, stop)
        else:
            yield from self.source.pieces(start, stop)

    def elements(self, start: int, stop: int, scratch: Scratch) -> Array:
        if not self.moves:
            return self.source.elements(start, stop, scratch)
        storage = DTYPES[self.spec.dtype].storage
        out = scratch.take(storage, stop - start)
        held = scratch.known(self, lambda _: _Held(-1, np.empty(0, storage)))
        filled = 0
        while filled < len(out):
            number, inside = divmod(start + filled, self._strip)
            if number != held.number:
                self._make(held, number, scratch)
            part = held.values[inside : inside + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out

    def _make(self, held: _Held, number: int, scratch: Scratch) -> None:
        """Make a strip in the place of the one before."""
        first, last = number * self._strip, min((number + 1) * self._strip, self.spec.count)
        if len(held.values) != last - first:
            held.values = np.empty(last - first, held.values.dtype)
        held.number, filled = -1, 0
        back = np.argsort(self.order)
        for box in boxes([self.source.spec.shape[axis] for axis in self.order], first, last):
            out = held.values[filled : filled + count(box)].reshape(_sizes(box))
            _fill(out.transpose(back), self.source, tuple(box[axis] for axis in back), scratch)
            filled += out.size
        held.number = number

    def new_regions(self) -> tuple[Region, ...]:
        regions = self.source.new_regions()
        if not self.spec.count:
            return (whole(self.shape),) if regions else ()
        moved = tuple(self.source.spec.shape[axis] for axis in self.order)
        return tuple(
            part
            for region in regions
            for part in reshaped(tuple(region[axis] for axis in self.order), moved, self.shape)
        )


def _is_at_hand(tensor: LazyTensor) -> bool:
    """Say whether any box of a tensor is copied from files, with nothing computed for it."""
    match tensor:
        case Joined(parts=parts):
            return all(map(_is_at_hand, parts))
        case Copied(source=source) | Selected(source=source):
            return _is_at_hand(source)
        case Rearranged() if tensor.is_permutation:
            return _is_at_hand(tensor.source)
    return _is_in_file(tensor)


def _is_in_file(tensor: LazyTensor) -> bool:
    if isinstance(tensor, Strided):
        return True
    pieces = list(islice(tensor.pieces(0, tensor.spec.count), 2)) if tensor.spec.count else []
    return len(pieces) == 1 and isinstance(pieces[0], ByteRange)


def _mapped(tensor: LazyTensor) -> Array:
    """Return a tensor that lies in a file as a view of it."""
    storage = DTYPES[tensor.spec.dtype].storage
    if isinstance(tensor, Strided):
        flat = _mapped(tensor.storage)
        strides = [stride * storage.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    (piece,) = tensor.pieces(0, tensor.spec.count)
    assert isinstance(piece, ByteRange)
    mapped = piece.file.mapped(piece.offset, piece.size_bytes)
    return mapped.view(storage).reshape(tensor.spec.shape)


def _fill(out: Array, tensor: LazyTensor, box: Region, scratch: Scratch) -> None:
    """Fill an array, of whatever strides, with a box of a tensor."""
    match tensor:
        case _ if _is_in_file(tensor):
            _copy(out, _mapped(tensor)[_slices(box)])
        case Copied(source=source):
            _fill(out, source, box, scratch)
        case Rearranged(source=source, order=order) if tensor.is_permutation:
            back = np.argsort(order)
            _fill(out.transpose(back), source, tuple(box[axis] for axis in back), scratch)
        case Joined(parts=parts, dim=dim):
            sizes = [part.spec.shape[dim] for part in parts]
            _fill_along(out, dim, box, [(p, 0, n) for p, n in zip(parts, sizes, strict=True)],
                        scratch)  # fmt: skip
        case Selected(source=source, dim=dim, ranges=ranges):
            _fill_along(out, dim, box, [(source, *side) for side in ranges], scratch)
        case _:
            _stream(out, tensor, box, scratch)


def _fill_along(
    out: Array,
    dim: int,
    box: Region,
    ranges: Sequence[tuple[LazyTensor, int, int]],
    scratch: Scratch,
) -> None:
    """Fill a box of ranges of tensors that follow each other along a dimension."""
    begin, offset = box[dim][0], 0
    for tensor, start, stop in ranges:
        low, high = max(begin, offset), min(box[dim][1], offset + stop - start)
        if low < high:
            window = out[(*[slice(None)] * dim, slice(low - begin, high - begin))]
            side = (low - offset + start, high - offset + start)
            _fill(window, tensor, (*box[:dim], side, *box[dim + 1 :]), scratch)
        offset += stop - start


def _stream(out: Array, tensor: LazyTensor, box: Region, scratch: Scratch) -> None:
    """Fill a box from a tensor that is computed, in its own order."""
    for axis in reversed(range(len(box))):
        if box[axis] != (0, tensor.spec.shape[axis]):
            tensor = Selected(tensor, axis, (box[axis],))
    for start in range(0, out.size, BLOCK):
        with scratch.scope():
            values = tensor.elements(start, min(start + BLOCK, out.size), scratch)
            taken = 0
            for part in boxes(out.shape, start, start + len(values)):
                block = values[taken : taken + count(part)].reshape(_sizes(part))
                out[_slices(part)] = block
                taken += block.size


def _sizes(box: Region) -> list[int]:
    return [stop - start for start, stop in box]


def _slices(box: Region) -> tuple[slice, ...]:
    return tuple(slice(*side) for side in box)


def _copy(out: Array, view: Array) -> None:
    """Copy a view of other strides, so that what a cache line brings in is used at once."""
    axes = np.argsort([-abs(stride) for stride in out.strides], kind="stable")
    out, view = out.transpose(axes), view.transpose(axes)
    if not out.ndim or view.strides[-1] == view.itemsize:
        out[...] = view
        return
    for start in range(0, out.shape[-1], _TILE):
        out[..., start : start + _TILE] = view[..., start : start + _TILE]

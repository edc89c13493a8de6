"""Tensors whose elements are another's in another order, or under another shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from surgeon.dtypes import DTYPES, Array
from surgeon.lazy.base import BLOCK, ByteRange, Computed, LazyTensor, Piece, Scratch, TensorSpec
from surgeon.lazy.joined import Selected
from surgeon.regions import Region, boxes, count, reshaped, whole

# Bytes of the result that are made, and kept, at a time: as many as a worker writes in one go. A
# narrow block would take all of the source's rows, or worse, compute all of them, for itself.
STRIP = 16 << 20
# Elements of a column that are copied at a time. Rows of some power of two of bytes share few
# places in a cache; from 256 on copying takes five times as long (8192 x 8192, 2 bytes each).
_TILE = 64


@dataclass
class _Strip:
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
    def _axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The fewest axes that say the same: the source's sizes, and their order here."""
        sizes = self.source.spec.shape
        runs: list[list[int]] = []
        kept = [axis for axis, size in enumerate(sizes) if size != 1]
        for place in (kept.index(axis) for axis in self.order if sizes[axis] != 1):
            if runs and runs[-1][-1] + 1 == place:
                runs[-1].append(place)
            else:
                runs.append([place])
        ordered = sorted(runs)
        merged = [int(np.prod([sizes[kept[place]] for place in run])) for run in ordered]
        return tuple(merged), tuple(ordered.index(run) for run in runs)

    @property
    def moves(self) -> bool:
        """Whether any element has another place than in the source."""
        return len(self._axes[0]) > 1 and self.spec.count > 1

    @property
    def held_bytes(self) -> int:
        """The bytes that are kept between blocks, and taken to make them."""
        if not self.moves:
            return 0
        size = DTYPES[self.spec.dtype].storage.itemsize
        # A block for each selection that cuts the strip out of the source.
        return min(self.spec.count * size, STRIP) + (len(self._axes[0]) + 1) * BLOCK * size

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
        held = scratch.known(self, lambda _: _Strip(-1, np.empty(0, storage)))
        size = max(STRIP // storage.itemsize, 1)
        filled = 0
        while filled < len(out):
            number, inside = divmod(start + filled, size)
            if number != held.number:
                self._make(held, number, size, scratch)
            part = held.values[inside : inside + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out

    def _make(self, held: _Strip, number: int, size: int, scratch: Scratch) -> None:
        """Make a strip in the place of the one before."""
        first, last = number * size, min((number + 1) * size, self.spec.count)
        if len(held.values) != last - first:
            held.values = np.empty(last - first, held.values.dtype)
        held.number = -1
        sizes, order = self._axes
        stored = self._mapped()
        filled = 0
        for box in boxes([sizes[axis] for axis in order], first, last):
            out = held.values[filled : filled + count(box)].reshape(_sizes(box))
            if stored is not None:
                view = stored.reshape(sizes).transpose(order)
                _copy(out, view[tuple(slice(*side) for side in box)])
            else:
                self._compute(out, box, scratch)
            filled += out.size
        held.number = number

    def _mapped(self) -> Array | None:
        """Return the source as a view of a file, None where it is not one range of bytes."""
        match list(islice(self.source.pieces(0, self.spec.count), 2)):
            case [ByteRange(file=file, offset=offset, size_bytes=size_bytes)]:
                return file.mapped(offset, size_bytes).view(DTYPES[self.spec.dtype].storage)
        return None

    def _compute(self, out: Array, box: Region, scratch: Scratch) -> None:
        """Fill a box from a source that is computed, which is asked for in its own order."""
        sizes, order = self._axes
        source: LazyTensor = Rearranged(self.source, tuple(range(len(self.order))), sizes)
        for axis, side in sorted(zip(order, box, strict=True), reverse=True):
            if side != (0, sizes[axis]):
                source = Selected(source, axis, (side,))
        into = out.transpose(np.argsort(order))
        for start in range(0, out.size, BLOCK):
            stop = min(start + BLOCK, out.size)
            with scratch.scope():
                values, taken = source.elements(start, stop, scratch), 0
                for part in boxes(into.shape, start, stop):
                    block = values[taken : taken + count(part)].reshape(_sizes(part))
                    into[tuple(slice(*side) for side in part)] = block
                    taken += block.size

    def new(self) -> tuple[Region, ...]:
        regions = self.source.new()
        if not self.spec.count:
            return (whole(self.shape),) if regions else ()
        moved = tuple(self.source.spec.shape[axis] for axis in self.order)
        return tuple(
            part
            for region in regions
            for part in reshaped(tuple(region[axis] for axis in self.order), moved, self.shape)
        )


def _sizes(box: Region) -> list[int]:
    return [stop - start for start, stop in box]


def _copy(out: Array, view: Array) -> None:
    """Copy a view of other strides, so that what a cache line brings in is used at once."""
    if view.strides[-1] == view.itemsize:
        out[...] = view
        return
    for start in range(0, out.shape[-1], _TILE):
        out[..., start : start + _TILE] = view[..., start : start + _TILE]

"""Views of what lies in files, by strides: parts of them are read, and never mapped.

A mapped file that is cut off meanwhile ends the process; a read ends early, which is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.base import ByteSource
from surgeon.lazy.scratch import Scratch
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array

# Bytes that are read before they go where they belong: no more than a processor's cache has.
_CHUNK = 256 << 10
# Bytes between two runs that are read too: that takes as long as another call of the system, or
# where it is Python that calls, or something far away that answers.
_GAP, _GAP_OF_PYTHON = 2 << 10, 16 << 10
# Elements of a column that are copied at a time. Rows of some power of two of bytes share few
# places in a cache; from 256 on copying takes five times as long (8192 x 8192, 2 bytes each).
_TILE = 64


@dataclass(frozen=True)
class View:
    """Elements of a file with strides in bytes, none negative; `offset` is the first one's."""

    file: ByteSource
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read_into(self, out: Array, box: Region, scratch: Scratch) -> None:
        """Fill an array, of whatever strides, with a box of the view."""
        if not out.size:
            return
        held = self.file.whole(self.offset, self._extent)
        if held is not None:
            view = np.ndarray(self.shape, self.dtype, held, 0, self.strides)
            _copy(out, view[tuple(slice(*side) for side in box)])
            return
        # The longest strides first, as the bytes lie; what is said again and again is read once.
        axes = sorted(range(out.ndim), key=lambda axis: -self.strides[axis])
        once = [axis for axis in axes if self.strides[axis] and out.shape[axis] > 1]
        first = tuple(slice(None) if axis in once else 0 for axis in range(out.ndim))
        kept = [axis for axis in range(out.ndim) if axis in once]
        found = out[(*first, ...)].transpose([kept.index(axis) for axis in once])
        begin = sum(low * stride for (low, _), stride in zip(box, self.strides, strict=True))
        self._read(found, self.offset + begin, [self.strides[axis] for axis in once], scratch)
        if len(once) < out.ndim:
            out[...] = out[tuple(slice(None) if axis in once else slice(1)
                                 for axis in range(out.ndim))]  # fmt: skip

    @property
    def _extent(self) -> int:
        """The bytes from the first element to the last."""
        sides = zip(self.shape, self.strides, strict=True)
        return sum((size - 1) * stride for size, stride in sides) + self.dtype.itemsize

    def _read(self, out: Array, offset: int, strides: list[int], scratch: Scratch) -> None:
        gap = _GAP_OF_PYTHON if self._descriptor() is None else _GAP
        # How many of the last dimensions, whole, lie so near to each other that a run has them.
        run_bytes, inner = self.dtype.itemsize, out.ndim
        while inner and strides[inner - 1] - run_bytes <= gap:
            longer = (out.shape[inner - 1] - 1) * strides[inner - 1] + run_bytes
            if longer > _CHUNK:
                break
            run_bytes, inner = longer, inner - 1
        if not inner:
            out, strides, inner = out[None], [run_bytes, *strides], 1
        pitch, strides, above = strides[inner - 1], strides[inner:], strides[: inner - 1]
        is_near = pitch - run_bytes <= gap
        # So many runs at a time, one behind the other, or with what lies between them.
        step = max(_CHUNK // max(run_bytes, pitch if is_near else 0), 1)
        for index in np.ndindex(out.shape[: inner - 1]):
            at = offset + sum(map(int.__mul__, index, above))
            for start in range(0, out.shape[inner - 1], step):
                part = out[(*index, slice(start, start + step))]
                place = at + start * pitch, pitch
                if is_near:
                    taken = (len(part) - 1) * pitch + run_bytes
                    self._read_part(part, place, (1, taken), (pitch, *strides), scratch)
                else:
                    rows = len(part), run_bytes
                    self._read_part(part, place, rows, (run_bytes, *strides), scratch)

    def _read_part(
        self, part: Array, place: tuple[int, int], rows: tuple[int, int],
        strides: tuple[int, ...], scratch: Scratch,
    ) -> None:  # fmt: skip
        """Read rows of bytes, and fill an array with what lies in them by these strides."""
        if part.flags.c_contiguous and part.strides == strides:
            self._read_rows(*place, part.reshape(-1).view(np.uint8).reshape(rows))
            return
        with scratch.scope():
            buffer = scratch.take(np.uint8, rows[0] * rows[1])
            self._read_rows(*place, buffer.reshape(rows))
            _copy(part, np.ndarray(part.shape, self.dtype, buffer, 0, strides))

    def _descriptor(self) -> int | None:
        return self.file.fileno() if compiled.loops() else None

    def _read_rows(self, offset: int, pitch: int, rows: Array) -> None:
        """Fill rows of bytes, `pitch` bytes apart in the file."""
        descriptor = self._descriptor() if len(rows) > 1 else None
        if descriptor is not None and compiled.read_runs(descriptor, offset, pitch, rows):
            self.file.check_unchanged()
            return
        for number, row in enumerate(rows):
            self.file.read_into(offset + number * pitch, row.data)


def packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides, in bytes, of elements that lie one behind the other."""
    return tuple(prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


def _copy(out: Array, view: Array) -> None:
    """Copy a view of other strides, so that what a cache line brings in is used at once."""
    axes = np.argsort([-abs(stride) for stride in out.strides], kind="stable")
    out, view = out.transpose(axes), view.transpose(axes)
    if not out.ndim or view.strides[-1] == view.itemsize:
        out[...] = view
        return
    for start in range(0, out.shape[-1], _TILE):
        out[..., start : start + _TILE] = view[..., start : start + _TILE]

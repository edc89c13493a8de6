"""Tensors whose elements are another's in another order, or under another shape."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region, boxes, count, reshaped, whole
from surgeon.lazy.base import (
    BLOCK,
    ByteRange,
    Computed,
    Evaluation,
    LazyTensor,
    Part,
    Request,
    ScratchBytes,
    TensorSpec,
)
from surgeon.lazy.joined import Joined, Move, Selected, width_of
from surgeon.lazy.same import Copied, Sharded
from surgeon.lazy.scratch import Scratch
from surgeon.lazy.stored import STRIP, Strided
from surgeon.lazy.views import View, packed
from surgeon.numeric.dtypes import DTYPES, Array

# What is computed, is computed once per strip, since its rows are: at most so many times, in strips
# as large as that takes.
_PASSES = 8


@dataclass
class _Held:
    """The strip that a worker made last."""

    number: int
    values: Array


@dataclass(frozen=True, eq=False)
class Rearranged(Move):
    """Another tensor with its dimensions in another order, then with another shape.

    `order` lists the source's dimensions. Where nothing moves, it is the source's bytes.
    """

    source: LazyTensor
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        (source,) = operands
        return Rearranged(source, self.order, self.shape)

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
        size = max(STRIP // width_of(self), 1)
        return size if _is_at_hand(self.source) else max(size, -(-self.spec.count // _PASSES))

    @property
    def is_computed_at_once(self) -> bool:  # type: ignore[override]
        """Whether one worker makes it all, since several would do the same for their parts."""
        return self.moves and self._strip > STRIP // width_of(self)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        if not self.moves:
            return ScratchBytes(0, 0, 0)
        size = width_of(self)
        block = min(self.spec.count, BLOCK) * size
        # A block for each selection that cuts the strip out of the source.
        held = min(self.spec.count, self._strip) * size + block * (len(self.order) + 1)
        return ScratchBytes(held, block, block)

    def locate(self, start: int, stop: int) -> Iterator[Computed | Part]:
        yield Computed(self, start, stop) if self.moves else Part(self.source, start, stop)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Evaluation:
        if not self.moves:
            block: Array = yield Request(self.source, start, stop, working)
            return block
        dtype = working or DTYPES[self.spec.dtype].storage
        out: Array = scratch.take(dtype, stop - start)
        strips: dict[np.dtype[Any], _Held] = scratch.known(self, lambda _: {})
        held = strips.setdefault(dtype, _Held(-1, np.empty(0, dtype)))
        filled = 0
        while filled < len(out):
            number, inside = divmod(start + filled, self._strip)
            if number != held.number:
                yield from self._make(held, number, scratch, working)
            part = held.values[inside : inside + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out

    def _make(
        self, held: _Held, number: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Generator[Request, Any, None]:
        """Make a strip in the place of the one before."""
        first, last = number * self._strip, min((number + 1) * self._strip, self.spec.count)
        if len(held.values) != last - first:
            held.values = np.empty(last - first, held.values.dtype)
        held.number, filled = -1, 0
        back = np.argsort(self.order)
        for box in boxes([self.source.spec.shape[axis] for axis in self.order], first, last):
            out = held.values[filled : filled + count(box)].reshape(_sizes(box))
            source_box = tuple(box[axis] for axis in back)
            yield from _fill(out.transpose(back), self.source, source_box, scratch, working)
            filled += out.size
        held.number = number

    def new_regions(self) -> tuple[Region, ...]:
        return self._new_regions

    @cached_property
    def _new_regions(self) -> tuple[Region, ...]:
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
    pending = [tensor]
    while pending:
        match form := pending.pop():
            case _ if _is_in_file(form):
                continue
            case Joined() | Copied() | Sharded() | Selected():
                pending += form.operands
            case Rearranged() if form.is_permutation:
                pending += form.operands
            case _:
                return False
    return True


def _is_in_file(tensor: LazyTensor) -> bool:
    if isinstance(tensor, Strided):
        return True
    pieces = list(islice(tensor.pieces(0, tensor.spec.count), 2)) if tensor.spec.count else []
    return len(pieces) == 1 and isinstance(pieces[0], ByteRange)


def _view(tensor: LazyTensor) -> View:
    """Return how a tensor lies in its file."""
    if isinstance(tensor, Strided):
        return tensor.view
    (piece,) = tensor.pieces(0, tensor.spec.count)
    assert isinstance(piece, ByteRange)
    storage, shape = DTYPES[tensor.spec.dtype].storage, tensor.spec.shape
    return View(piece.file, piece.offset, storage, shape, packed(shape, storage.itemsize))


def _fill(
    out: Array, tensor: LazyTensor, box: Region, scratch: Scratch, working: np.dtype[Any] | None
) -> Generator[Request, Any, None]:
    """Fill an array, of whatever strides, with a box of a tensor."""
    pending = [(out, tensor, box)]
    while pending:
        out, tensor, box = pending.pop()
        match tensor:
            case _ if working is None and _is_in_file(tensor):
                _view(tensor).read_into(out, box, scratch)
            case Copied(source=source) | Sharded(source=source):
                pending.append((out, source, box))
            case Rearranged(source=source, order=order) if tensor.is_permutation:
                back = np.argsort(order)
                pending.append((out.transpose(back), source, tuple(box[axis] for axis in back)))
            case Joined(parts=parts, dim=dim):
                ranges = [(part, 0, part.spec.shape[dim]) for part in parts]
                pending += _along(out, dim, box, ranges)
            case Selected(source=source, dim=dim, ranges=sides):
                pending += _along(out, dim, box, [(source, *side) for side in sides])
            case _:
                yield from _stream(out, tensor, box, scratch, working)


def _along(
    out: Array, dim: int, box: Region, ranges: Sequence[tuple[LazyTensor, int, int]]
) -> Iterator[tuple[Array, LazyTensor, Region]]:
    """Cut a box of ranges of tensors that follow each other along a dimension into theirs."""
    begin, offset = box[dim][0], 0
    for tensor, start, stop in ranges:
        low, high = max(begin, offset), min(box[dim][1], offset + stop - start)
        if low < high:
            window = out[(*[slice(None)] * dim, slice(low - begin, high - begin))]
            side = (low - offset + start, high - offset + start)
            yield window, tensor, (*box[:dim], side, *box[dim + 1 :])
        offset += stop - start


def _stream(
    out: Array, tensor: LazyTensor, box: Region, scratch: Scratch, working: np.dtype[Any] | None
) -> Generator[Request, Any, None]:
    """Fill a box from a tensor that is computed, in its own order."""
    for axis in reversed(range(len(box))):
        if box[axis] != (0, tensor.spec.shape[axis]):
            tensor = Selected(tensor, axis, (box[axis],))
    for start in range(0, out.size, BLOCK):
        with scratch.scope():
            stop = min(start + BLOCK, out.size)
            values: Array = yield Request(tensor, start, stop, working)
            taken = 0
            for part in boxes(out.shape, start, start + len(values)):
                block = values[taken : taken + count(part)].reshape(_sizes(part))
                out[_slices(part)] = block
                taken += block.size


def _sizes(box: Region) -> list[int]:
    return [stop - start for start, stop in box]


def _slices(box: Region) -> tuple[slice, ...]:
    return tuple(slice(*side) for side in box)

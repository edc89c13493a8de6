"""The bytes of a piece of a tensor, block by block: read from an input, or computed."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.base.deferred import np
from surgeon.formats.fetched import is_any_fetched, is_fetched, will_read
from surgeon.lazy import ByteRange, ByteSource, LazyTensor, Scratch, walk
from surgeon.lazy.base import Piece
from surgeon.numeric.dtypes import DTYPES

# Reads and writes of at most this much; larger ones leave the processor's cache.
COPY_BUFFER = 1 << 20
# Of what a tensor is computed from, bytes that are announced together, operand by operand.
_ANNOUNCED = 8 << 20
# What is less is read at once by what asks for it.
_READ_AHEAD = 1 << 20


def blocks(piece: Piece, scratch: Scratch, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of a piece, in order; each block is gone when the next is asked for."""
    if isinstance(piece, ByteRange):
        for start in range(0, piece.size_bytes, COPY_BUFFER):
            block = buffer[: min(COPY_BUFFER, piece.size_bytes - start)]
            piece.file.read_into(piece.offset + start, block)
            yield block
        return
    start, step = piece.start, piece.tensor.step
    while start < piece.stop:
        stop = min(start + step - start % step, piece.stop)
        with scratch.scope():
            yield piece.tensor.elements(start, stop, scratch).view(np.uint8).data
        start = stop


def moved_elsewhere(tensor: LazyTensor) -> int:
    """Return the bytes of what is elsewhere and is in memory whole, since its elements move."""
    if not is_any_fetched():
        return 0
    forms = [form for form in walk(tensor) if form.is_move]
    leaves = {id(leaf): leaf for form in forms for leaf in walk(form) if not leaf.operands}
    return sum(
        piece.size_bytes
        for leaf in leaves.values()
        for piece in (leaf.locate(0, leaf.spec.count) if leaf.spec.count else ())
        if isinstance(piece, ByteRange) and is_fetched(piece.file)
    )


def announce(parts: Iterator[tuple[LazyTensor, int, int]]) -> None:
    """Have what elements of tensors are made of on its way before it is asked for.

    What is elsewhere is fetched; of what is on a disk, the system reads ahead where it is much.
    """
    least = 1 if is_any_fetched() else _READ_AHEAD
    wanted: list[tuple[ByteSource, int, int]] = []
    for tensor, start, stop in parts:
        if (stop - start) * DTYPES[tensor.spec.dtype].bits // 8 < least:
            continue
        for piece in tensor.pieces(start, stop):
            if isinstance(piece, ByteRange):
                wanted.append((piece.file, piece.offset, piece.offset + piece.size_bytes))
            else:
                wanted += _sources(piece.tensor, piece.start, piece.stop)
    will_read(wanted)


def _sources(tensor: LazyTensor, start: int, stop: int) -> list[tuple[ByteSource, int, int]]:
    """Return what elements are computed from: of an operand as large, those in the same place."""
    runs: list[ByteRange] = []
    for form in walk(tensor):
        if not form.operands and form.spec.count:
            is_alike = form.spec.count == tensor.spec.count
            if not is_alike and not is_any_fetched():
                continue  # of a file that is near, it is not known which bytes are wanted
            first, last = (start, stop) if is_alike else (0, form.spec.count)
            runs += [piece for piece in form.locate(first, last) if isinstance(piece, ByteRange)]
    most = max((run.size_bytes for run in runs), default=0)
    # Models that are merged are read side by side.
    return [
        (run.file, run.offset + at, run.offset + min(at + _ANNOUNCED, run.size_bytes))
        for at in range(0, most, _ANNOUNCED)
        for run in runs
        if at < run.size_bytes
    ]

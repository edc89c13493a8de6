"""What one worker writes at a time: parts of tensors, copied or computed, with their checksums."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from surgeon.base.errors import CheckpointError
from surgeon.lazy import ByteRange, LazyTensor, Scratch, is_computed_at_once, walk
from surgeon.numeric.dtypes import DTYPES
from surgeon.output.blocks import COPY_BUFFER, announce, blocks, moved_elsewhere
from surgeon.output.calls import sync_file_range, write_all
from surgeon.output.checksums import Algorithm, Running, crc32_joined
from surgeon.output.layout import OutputFile, Placed

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

# Bytes that one worker takes at a time; a multiple of every block.
UNIT = 16 << 20
_SYNC_FILE_RANGE_WRITE = 2


class Unit(NamedTuple):
    """A part of one tensor that is written at once: its elements, and where in the file they go."""

    name: str
    tensor: LazyTensor
    offset: int
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return (self.stop - self.start) * DTYPES[self.tensor.spec.dtype].bits // 8


@dataclass(frozen=True)
class Batch:
    """Units of one file, in its order, that one worker writes.

    What is there already, in a linked file, has no descriptor; only its checksum is taken. Of a
    file that is hashed whole there is one batch, with the file's header.
    """

    file: str
    units: Sequence[Unit]
    descriptor: int | None
    header: bytes | None = None


@dataclass(frozen=True)
class Done:
    """What is known of a unit that was written; travels from process to process."""

    size_bytes: int
    crc32: int
    sha256: str
    copied_bytes: int
    file_sha256: str = ""

    def then(self, more: Done) -> Done:
        """Return what is known of this and of what comes right behind it in the same tensor."""
        return Done(
            self.size_bytes + more.size_bytes,
            crc32_joined(self.crc32, more.crc32, more.size_bytes),
            more.sha256,
            self.copied_bytes + more.copied_bytes,
            more.file_sha256,
        )

    @property
    def checksum(self) -> str:
        """The checksum as a manifest states it."""
        return f"sha256:{self.sha256}" if self.sha256 else f"crc32:{self.crc32:08x}"


def units_of(file: OutputFile, algorithm: Algorithm) -> Iterator[Unit]:
    """Yield what a file consists of, in its order."""
    for placed in file.tensors:
        yield from units_of_tensor(placed, len(file.header), algorithm)


def units_of_tensor(
    placed: Placed, header_bytes: int, algorithm: Algorithm, *, is_known: bool = False
) -> Iterator[Unit]:
    """Yield a tensor's units; `is_known` says that what has to be known of it will be told."""
    spec = placed.tensor.spec
    begin, bits = header_bytes + placed.offset, DTYPES[spec.dtype].bits
    per_unit = UNIT * 8 // bits
    # A hash takes a tensor's bytes in order; what is known of one should be found out once; what is
    # elsewhere and moves is fetched whole, which one worker should do.
    at_once = not is_known and is_computed_at_once(placed.tensor)
    at_once = at_once or moved_elsewhere(placed.tensor) > UNIT
    if algorithm == "sha256" or at_once or not spec.count:
        per_unit = max(spec.count, 1)
    for start in range(0, max(spec.count, 1), per_unit):
        stop = min(start + per_unit, spec.count)
        yield Unit(placed.name, placed.tensor, begin + start * bits // 8, start, stop)


def whole_batch(file: OutputFile, algorithm: Algorithm, descriptor: int | None = None) -> Batch:
    """Return all units of a file, which one worker takes in order."""
    header = file.header if file.is_hashed else None
    return Batch(file.name, list(units_of(file, algorithm)), descriptor, header)


class _Own(threading.local):
    """What each worker has of its own, be it a process or a thread."""

    def __init__(self) -> None:
        self.scratch = Scratch()
        self.buffer = memoryview(bytearray(COPY_BUFFER))


class UnitWriter:
    """Makes the bytes of units, takes their checksums, and writes them."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._own = _Own()
        self._start = sync_file_range()

    @property
    def scratch(self) -> Scratch:
        """The scratch of the worker at hand."""
        return self._own.scratch

    @property
    def buffer(self) -> memoryview:
        """The buffer of the worker at hand."""
        return self._own.buffer

    def write(self, batch: Batch) -> list[Done]:
        """Write a batch; return what is known of each of its units."""
        done: list[Done] = []
        for block, offset in self.stream(batch, done):
            if batch.descriptor is not None:
                write_all(batch.descriptor, block, offset)
        if batch.descriptor is not None:
            # Starting write-back here lets the disk work while blocks are still being computed.
            start = batch.units[0].offset
            size_bytes = batch.units[-1].offset + done[-1].size_bytes - start
            self._start_write_back(batch.descriptor, start, size_bytes)
        return done

    def stream(self, batch: Batch, done: list[Done]) -> Iterator[tuple[memoryview, int]]:
        """Yield a batch's blocks, each with its place in the file, and tell what each unit was.

        A block is gone when the next is asked for. What the kernel copied is not among them.
        """
        announce((unit.tensor, unit.start, unit.stop) for unit in batch.units)
        hashing = None if batch.header is None else hashlib.sha256(batch.header)
        for unit in batch.units:
            yield from self._unit(unit, batch.descriptor, hashing, done)
        if hashing and done:
            done[-1] = replace(done[-1], file_sha256=hashing.hexdigest())

    def _unit(
        self, unit: Unit, descriptor: int | None, hashing: Hash | None, done: list[Done]
    ) -> Iterator[tuple[memoryview, int]]:
        self._own.scratch.forget(walk(unit.tensor))
        algorithm = self._algorithm
        # The fingerprint of a file's content is the same, whichever checksums are asked for.
        running = Running(algorithm, hashing, has_crc32=algorithm != "none")
        offset, copied = unit.offset, 0
        pieces = unit.tensor.pieces(unit.start, unit.stop) if unit.stop else ()
        for piece in pieces:
            if isinstance(piece, ByteRange):
                copied += piece.size_bytes
                is_plain = not running and descriptor is not None
                if is_plain and self._copied_in_kernel(piece, descriptor, offset):
                    offset += piece.size_bytes
                    continue
            for block in blocks(piece, self._own.scratch, self._own.buffer):
                running.update(block)
                yield block, offset
                offset += len(block)
        done.append(Done(offset - unit.offset, running.crc32, running.sha256, copied))

    def _copied_in_kernel(self, piece: ByteRange, descriptor: int | None, offset: int) -> bool:
        source = piece.file.fileno()
        if not hasattr(os, "copy_file_range") or source is None or descriptor is None:
            return False
        done = 0
        while done < piece.size_bytes:
            try:
                count = os.copy_file_range(
                    source, descriptor, min(piece.size_bytes - done, UNIT), piece.offset + done,
                    offset + done,
                )  # fmt: skip
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    return False
                raise
            if not count:
                raise CheckpointError(f"{piece.file.path}: ends at byte {piece.offset + done}")
            done += count
        piece.file.check_unchanged()
        return True

    def _start_write_back(self, descriptor: int, offset: int, size_bytes: int) -> None:
        if self._start is not None:
            self._start(
                descriptor, ctypes.c_int64(offset), ctypes.c_int64(size_bytes),
                _SYNC_FILE_RANGE_WRITE,
            )  # fmt: skip

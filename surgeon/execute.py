"""Stream planned tensors to disk: byte ranges copied, the rest computed block by block."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from surgeon.checksums import Algorithm, Running, crc32_joined
from surgeon.draft import Check
from surgeon.dtypes import DTYPES
from surgeon.errors import CheckpointError, SurgeonError, WriteError
from surgeon.formats.checkpoint import Record
from surgeon.layout import OutputFile, Placed
from surgeon.lazy import BLOCK, ByteRange, Computed, Scratch

# Bytes that one worker takes at a time; a multiple of every block.
_UNIT = 16 << 20
# Reads and writes of at most this much; larger ones leave the processor's cache.
COPY_BUFFER = 1 << 20
_SYNC_FILE_RANGE_WRITE = 2

Progress = Callable[[int], None]


_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Options:
    """How to write: threads, checksums, and whom to tell how many bytes are done."""

    workers: int = 2
    checksums: Algorithm = "crc32"
    progress: Progress | None = None


@dataclass
class Written:
    """What is known once everything is written: totals, and each tensor's checksum."""

    checksums: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    copied_bytes: int = 0
    computed_bytes: int = 0


@dataclass(frozen=True)
class _Unit:
    """A part of one tensor that one worker writes: where to, and what."""

    descriptor: int
    placed: Placed
    offset: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Done:
    placed: Placed
    size_bytes: int
    crc32: int
    sha256: str
    copied_bytes: int


class _Worker(threading.local):
    """What each thread keeps for its blocks."""

    def __init__(self) -> None:
        self.scratch = Scratch()
        self.buffer = memoryview(bytearray(COPY_BUFFER))


class Executor:
    """Threads that check, write and verify; `stop` ends them at the next block."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._worker = _Worker()
        self._stopped = threading.Event()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def check(self, checks: Iterable[tuple[str, Check]]) -> list[str]:
        """Run the checks that look at tensor data; return what they report."""

        def run(item: tuple[str, Check]) -> str | None:
            place, check = item
            try:
                note = check(self._worker.scratch)
            except SurgeonError as error:
                raise error.at(place) from None
            return f"{place}: {note}" if note else None

        return [note for note in self._each(run, list(checks)) if note]

    def write(self, files: Mapping[int, OutputFile]) -> Written:
        """Write planned files, given by the descriptors that they are written through."""
        written = Written()
        batches: list[list[_Unit]] = []
        for descriptor, file in files.items():
            _allocate(descriptor, file.size_bytes)
            os.pwrite(descriptor, file.header, 0)
            batches += self._batches(descriptor, file)
        crcs: dict[str, int] = {}
        results = self._each(lambda batch: [self._write_unit(unit) for unit in batch], batches)
        for done in (done for batch in results for done in batch):
            name = done.placed.name
            crcs[name] = crc32_joined(crcs.get(name, 0), done.crc32, done.size_bytes)
            written.checksums[name] = (
                f"sha256:{done.sha256}" if done.sha256 else f"crc32:{crcs[name]:08x}"
            )
            written.copied_bytes += done.copied_bytes
            written.computed_bytes += done.size_bytes - done.copied_bytes
            if self._options.progress:
                self._options.progress(done.size_bytes)
        if self._options.checksums == "none":
            written.checksums.clear()
        for descriptor, file in files.items():
            if os.pread(descriptor, len(file.header), 0) != file.header:
                raise WriteError(f"{file.name}: reads back with another header than was written")
        return written

    def verify_records(self, records: Sequence[Record], files: Iterable[OutputFile],
                       checksums: Mapping[str, str]) -> None:  # fmt: skip
        """Compare what input files say of their bytes with what was read; raises CheckpointError.

        A tensor that was copied whole has its checksum already; other records are read again.
        """
        known: dict[tuple[int, int, int], str] = {}
        for file in files:
            for placed in file.tensors:
                pieces = list(placed.tensor.pieces(0, placed.tensor.spec.count))
                if len(pieces) == 1 and isinstance(piece := pieces[0], ByteRange):
                    place = (id(piece.file), piece.offset, piece.size_bytes)
                    known[place] = checksums.get(placed.name, "")

        def verify(record: Record) -> None:
            stated = f"crc32:{record.crc32:08x}"
            found = known.get((id(record.file), record.offset, record.size_bytes), "")
            if not found.startswith("crc32:"):
                found = f"crc32:{self._crc32_of(record):08x}"
            if found != stated:
                raise CheckpointError(
                    f"{record.file.path}: damaged: {record.size_bytes} bytes at {record.offset} "
                    f"have {found}, but the file states {stated}"
                )

        for _ in self._each(verify, list(records)):
            pass

    def _each(self, work: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
        """Yield results in the order of the items; the first failure ends all workers."""
        if self._options.workers == 1 or len(items) <= 1:
            yield from map(work, items)
            return
        pool = ThreadPoolExecutor(self._options.workers)
        try:
            yield from pool.map(work, items)
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            self._stopped.clear()

    def _batches(self, descriptor: int, file: OutputFile) -> Iterator[list[_Unit]]:
        """Yield units in file order, small ones together, so that threads have work for long."""
        batch: list[_Unit] = []
        for placed in file.tensors:
            for unit in self._units(descriptor, placed, len(file.header)):
                batch.append(unit)
                if unit.offset - batch[0].offset >= _UNIT // 2:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _units(self, descriptor: int, placed: Placed, header_bytes: int) -> Iterator[_Unit]:
        spec = placed.tensor.spec
        begin = header_bytes + placed.offset
        per_unit = _UNIT * 8 // DTYPES[spec.dtype].bits
        if self._options.checksums == "sha256" or not spec.count:
            per_unit = max(spec.count, 1)  # a hash takes a tensor's bytes in order
        for start in range(0, max(spec.count, 1), per_unit):
            offset = begin + start * DTYPES[spec.dtype].bits // 8
            yield _Unit(descriptor, placed, offset, start, min(start + per_unit, spec.count))

    def _write_unit(self, unit: _Unit) -> _Done:
        running = Running(self._options.checksums)
        offset, copied = unit.offset, 0
        pieces = unit.placed.tensor.pieces(unit.start, unit.stop) if unit.stop else ()
        for piece in pieces:
            if isinstance(piece, ByteRange):
                self._copy(piece, unit.descriptor, offset, running)
                offset += piece.size_bytes
                copied += piece.size_bytes
            else:
                offset = self._compute(piece, unit.descriptor, offset, running)
        size = offset - unit.offset
        # Starting write-back here lets the disk work while blocks are still being computed.
        self._start_write_back(unit.descriptor, unit.offset, size)
        sha256 = running.sha256
        return _Done(unit.placed, size, running.crc32, sha256, copied)

    def _copy(self, piece: ByteRange, descriptor: int, offset: int, running: Running) -> None:
        if self._options.checksums == "none" and self._copied_in_kernel(piece, descriptor, offset):
            return
        for start in range(0, piece.size_bytes, COPY_BUFFER):
            self._raise_if_stopped()
            block = self._worker.buffer[: min(COPY_BUFFER, piece.size_bytes - start)]
            piece.file.read_into(piece.offset + start, block)
            running.update(block)
            _write_all(descriptor, block, offset + start)

    def _copied_in_kernel(self, piece: ByteRange, descriptor: int, offset: int) -> bool:
        source = piece.file.fileno()
        if source is None or not hasattr(os, "copy_file_range"):
            return False
        done = 0
        while done < piece.size_bytes:
            self._raise_if_stopped()
            try:
                count = os.copy_file_range(
                    source, descriptor, min(piece.size_bytes - done, _UNIT), piece.offset + done,
                    offset + done,
                )  # fmt: skip
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    return False
                raise
            if not count:
                raise CheckpointError(f"{piece.file.path}: ends at byte {piece.offset + done}")
            done += count
        return True

    def _compute(self, piece: Computed, descriptor: int, offset: int, running: Running) -> int:
        scratch = self._worker.scratch
        for start in range(piece.start, piece.stop, BLOCK):
            self._raise_if_stopped()
            with scratch.scope():
                block = piece.tensor.elements(start, min(start + BLOCK, piece.stop), scratch)
                data = block.view(np.uint8).data
                running.update(data)
                _write_all(descriptor, data, offset)
                offset += len(data)
        return offset

    def _crc32_of(self, record: Record) -> int:
        running = Running("crc32")
        for start in range(0, record.size_bytes, COPY_BUFFER):
            self._raise_if_stopped()
            block = self._worker.buffer[: min(COPY_BUFFER, record.size_bytes - start)]
            record.file.read_into(record.offset + start, block)
            running.update(block)
        return running.crc32

    def _start_write_back(self, descriptor: int, offset: int, size_bytes: int) -> None:
        if start := getattr(self._libc, "sync_file_range", None):
            start(
                descriptor, ctypes.c_int64(offset), ctypes.c_int64(size_bytes),
                _SYNC_FILE_RANGE_WRITE,
            )  # fmt: skip

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise WriteError("stopped, since another worker failed")


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve the space, so that a full disk is known at once."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size_bytes)


def _write_all(descriptor: int, block: memoryview, offset: int) -> None:
    while block:
        count = os.pwrite(descriptor, block, offset)
        block = block[count:]
        offset += count

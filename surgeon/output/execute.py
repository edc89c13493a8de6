"""Stream planned tensors to disk: byte ranges copied, the rest computed block by block."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from surgeon.base.errors import CheckpointError, SurgeonError, WriteError
from surgeon.draft import Check
from surgeon.formats.checkpoint import Record
from surgeon.formats.safetensors import header_sha256
from surgeon.lazy import ByteRange, Scratch, is_computed_at_once, walk
from surgeon.numeric.blas import is_pinned
from surgeon.numeric.dtypes import DTYPES
from surgeon.output.blocks import COPY_BUFFER, announce, blocks, moved_elsewhere
from surgeon.output.calls import allocate, sync_file_range, write_all
from surgeon.output.checksums import Algorithm, Running, crc32_joined
from surgeon.output.layout import OutputFile, Placed
from surgeon.output.workers import parallel_map, worthwhile

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

# Bytes that one worker takes at a time; a multiple of every block.
_UNIT = 16 << 20
# The most units that one worker takes at a time.
_MOST_UNITS = 256
# What computing a tensor costs beside its bytes, in bytes.
_PER_COMPUTED = 64 << 10
_SYNC_FILE_RANGE_WRITE = 2
_NOT_PINNED = (
    "how many threads NumPy's linear algebra has cannot be set here, and the last bits of "
    "decompositions may depend on it; OMP_NUM_THREADS=1 settles it"
)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How to write: workers, checksums, and whom to tell how many bytes are done."""

    workers: int = 2
    checksums: Algorithm = "crc32"
    progress: Progress | None = None


@dataclass
class WrittenFile:
    """What is known of a file once it is written; `sha256` of those that are hashed whole."""

    checksums: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    header_sha256: str = ""


@dataclass
class Written:
    """What is known once everything is written: totals, and each file by its name."""

    files: dict[str, WrittenFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    copied_bytes: int = 0
    computed_bytes: int = 0
    linked_bytes: int = 0

    def add(self, more: Written) -> None:
        """Add what is known of further files."""
        self.files |= more.files
        self.notes += [note for note in more.notes if note not in self.notes]
        self.copied_bytes += more.copied_bytes
        self.computed_bytes += more.computed_bytes
        self.linked_bytes += more.linked_bytes


@dataclass(frozen=True)
class _Unit:
    """A part of one tensor that one worker writes: where to, and what.

    What is there already, in a linked file, has no descriptor; only its checksum is taken.
    """

    file: OutputFile
    descriptor: int | None
    placed: Placed
    offset: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Done:
    """What is known of a unit that was written; travels from process to process."""

    size_bytes: int
    crc32: int
    sha256: str
    copied_bytes: int
    file_sha256: str = ""


class _Own(threading.local):
    """What each worker has of its own, be it a process or a thread."""

    def __init__(self) -> None:
        self.scratch = Scratch()
        self.buffer = memoryview(bytearray(COPY_BUFFER))


class Executor:
    """Checks, writes and verifies, with as many workers as there is work for."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._own = _Own()
        self._start = sync_file_range()

    def check(self, checks: Sequence[tuple[str, Check]], size_bytes: int) -> list[str]:
        """Run the checks that look at tensor data, of about this size; return what they report."""
        workers = worthwhile(self._options.workers, size_bytes)
        return [note for note in parallel_map(self._check, checks, workers) if note]

    def _check(self, item: tuple[str, Check]) -> str | None:
        place, check = item
        try:
            note = check(self._own.scratch)
        except SurgeonError as error:
            raise error.at(place) from None
        return f"{place}: {note}" if note else None

    def write(self, files: Mapping[int, OutputFile]) -> Written:
        """Write planned files, given by the descriptors that they are written through.

        Those with a `source` are there already.
        """
        written = Written({file.name: _nothing_of(file) for file in files.values()})
        batches: list[list[_Unit]] = []
        for descriptor, file in files.items():
            if file.source is None:
                allocate(descriptor, file.size_bytes)
                write_all(descriptor, memoryview(file.header), 0)
                batches += self._batches(descriptor, file)
            else:
                size_bytes = file.size_bytes - len(file.header)
                written.linked_bytes += size_bytes
                if self._options.checksums != "none":
                    batches += self._batches(None, file)
                elif self._options.progress:
                    self._options.progress(size_bytes)
        crcs = self._made(batches, [*files.values()], written)
        for descriptor, file in files.items():
            header = file.header
            if file.content_at >= 0 and self._options.checksums != "none":
                header = file.header_with(
                    crcs.get((file.name, placed.name), 0) for placed in file.tensors
                )
                write_all(descriptor, memoryview(header), 0)
            written.files[file.name].header_sha256 = header_sha256(header)
            if os.pread(descriptor, len(header), 0) != header:
                raise WriteError(f"{file.name}: reads back with another header than was written")
        return written

    def measure(self, files: Sequence[OutputFile]) -> tuple[Written, dict[str, bytes]]:
        """Make files and write them nowhere; return their checksums, and their headers.

        What streams to where nobody can seek begins with a header that holds a fingerprint.
        """
        written = Written({file.name: _nothing_of(file) for file in files})
        batches = [batch for file in files for batch in self._batches(None, file)]
        crcs = self._made(batches, files, written)
        return written, {
            file.name: file.header_with(
                crcs.get((file.name, placed.name), 0) for placed in file.tensors
            )
            for file in files
        }

    def _made(
        self, batches: Sequence[list[_Unit]], files: Sequence[OutputFile], written: Written
    ) -> dict[tuple[str, str], int]:
        """Have the workers take all batches; returns the CRC-32 of tensors, by file and name."""
        crcs: dict[tuple[str, str], int] = {}
        workers = worthwhile(self._options.workers, sum(map(_work, files)))
        for batch, results in zip(
            batches, parallel_map(self._write, batches, workers), strict=True
        ):
            for unit, done in zip(batch, results, strict=True):
                name, found = unit.placed.name, written.files[unit.file.name]
                key = (unit.file.name, name)
                crcs[key] = crc32_joined(crcs.get(key, 0), done.crc32, done.size_bytes)
                found.checksums[name] = (
                    f"sha256:{done.sha256}" if done.sha256 else f"crc32:{crcs[key]:08x}"
                )
                found.sha256 = done.file_sha256 or found.sha256
                if unit.descriptor is not None:
                    written.copied_bytes += done.copied_bytes
                    written.computed_bytes += done.size_bytes - done.copied_bytes
                if self._options.progress:
                    self._options.progress(done.size_bytes)
        if self._options.checksums == "none":
            for found in written.files.values():
                found.checksums.clear()
        if not is_pinned() and any(
            is_computed_at_once(placed.tensor) for file in files for placed in file.tensors
        ):
            written.notes.append(_NOT_PINNED)
        return crcs

    def verify_records(self, records: Sequence[Record], files: Sequence[OutputFile],
                       written: Written) -> None:  # fmt: skip
        """Compare what input files say of their bytes with what was read; raises CheckpointError.

        That is of those bytes that are in some of the files. A tensor that was copied whole has its
        checksum already; other records are read again.
        """
        if not records:
            return
        known: dict[tuple[int, int, int], str] = {}
        for file in files:
            for placed in file.tensors:
                pieces = list(placed.tensor.pieces(0, placed.tensor.spec.count))
                if len(pieces) == 1 and isinstance(piece := pieces[0], ByteRange):
                    place = (id(piece.file), piece.offset, piece.size_bytes)
                    known[place] = written.files[file.name].checksums.get(placed.name, "")

        again = [
            record
            for record in _used(records, files)
            if not self._is_verified(
                record, known.get((id(record.file), record.offset, record.size_bytes), "")
            )
        ]
        size_bytes = sum(record.size_bytes for record in again)
        workers = worthwhile(self._options.workers, size_bytes)
        for _ in parallel_map(self._verify, again, workers):
            pass

    def _is_verified(self, record: Record, found: str) -> bool:
        """Say whether a record's checksum is known; raises CheckpointError where it is another."""
        if not found.startswith("crc32:"):
            return False
        stated = f"crc32:{record.crc32:08x}"
        if found != stated:
            raise CheckpointError(
                f"{record.file.path}: damaged: {record.size_bytes} bytes at {record.offset} "
                f"have {found}, but the file states {stated}"
            )
        return True

    def _verify(self, record: Record) -> None:
        running = Running("crc32")
        for start in range(0, record.size_bytes, COPY_BUFFER):
            block = self._own.buffer[: min(COPY_BUFFER, record.size_bytes - start)]
            record.file.read_into(record.offset + start, block)
            running.update(block)
        self._is_verified(record, f"crc32:{running.crc32:08x}")

    def _batches(self, descriptor: int | None, file: OutputFile) -> Iterator[list[_Unit]]:
        """Yield units in file order, small ones together, so that workers have enough for long."""
        batch: list[_Unit] = []
        whole = file.is_hashed  # one worker takes all of it, in order
        for placed in file.tensors:
            # What is elsewhere and moves is fetched whole, which one worker should do.
            at_once = is_computed_at_once(placed.tensor) or moved_elsewhere(placed.tensor) > _UNIT
            for unit in self._units(descriptor, placed, file, at_once):
                batch.append(unit)
                if whole:
                    continue
                if unit.offset - batch[0].offset >= _UNIT // 2 or len(batch) == _MOST_UNITS:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _units(
        self, descriptor: int | None, placed: Placed, file: OutputFile, at_once: bool
    ) -> Iterator[_Unit]:
        spec = placed.tensor.spec
        begin = len(file.header) + placed.offset
        per_unit = _UNIT * 8 // DTYPES[spec.dtype].bits
        # A hash takes a tensor's bytes in order, and what is known of one should be found out once.
        if self._options.checksums == "sha256" or at_once or not spec.count:
            per_unit = max(spec.count, 1)
        for start in range(0, max(spec.count, 1), per_unit):
            offset = begin + start * DTYPES[spec.dtype].bits // 8
            yield _Unit(file, descriptor, placed, offset, start, min(start + per_unit, spec.count))

    def _write(self, batch: list[_Unit]) -> list[_Done]:
        file = batch[0].file
        announce((unit.placed.tensor, unit.start, unit.stop) for unit in batch)
        hashing = hashlib.sha256(file.header) if file.is_hashed else None
        done = [self._write_unit(unit, hashing) for unit in batch]
        if hashing:
            done[-1] = replace(done[-1], file_sha256=hashing.hexdigest())
        return done

    def _write_unit(self, unit: _Unit, hashing: Hash | None) -> _Done:
        self._own.scratch.forget(walk(unit.placed.tensor))
        algorithm = self._options.checksums
        # The fingerprint of a file's content is the same, whichever checksums are asked for.
        running = Running(algorithm, hashing, has_crc32=algorithm != "none")
        offset, copied = unit.offset, 0
        descriptor = unit.descriptor
        pieces = unit.placed.tensor.pieces(unit.start, unit.stop) if unit.stop else ()
        for piece in pieces:
            if isinstance(piece, ByteRange):
                copied += piece.size_bytes
                is_plain = not running and descriptor is not None
                if is_plain and self._copied_in_kernel(piece, descriptor, offset):
                    offset += piece.size_bytes
                    continue
            for block in blocks(piece, self._own.scratch, self._own.buffer):
                running.update(block)
                if descriptor is not None:
                    write_all(descriptor, block, offset)
                offset += len(block)
        size = offset - unit.offset
        if descriptor is not None:
            # Starting write-back here lets the disk work while blocks are still being computed.
            self._start_write_back(descriptor, unit.offset, size)
        return _Done(size, running.crc32, running.sha256, copied)

    def _copied_in_kernel(self, piece: ByteRange, descriptor: int | None, offset: int) -> bool:
        source = piece.file.fileno()
        if not hasattr(os, "copy_file_range") or source is None or descriptor is None:
            return False
        done = 0
        while done < piece.size_bytes:
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
        piece.file.check_unchanged()
        return True

    def _start_write_back(self, descriptor: int, offset: int, size_bytes: int) -> None:
        if self._start is not None:
            self._start(
                descriptor, ctypes.c_int64(offset), ctypes.c_int64(size_bytes),
                _SYNC_FILE_RANGE_WRITE,
            )  # fmt: skip


def _used(records: Iterable[Record], files: Iterable[OutputFile]) -> list[Record]:
    """Return the byte runs with stated checksums that some tensors of the files are made of."""
    used: dict[int, list[int]] = {}
    for placed in (placed for file in files for placed in file.tensors):
        for form in walk(placed.tensor):
            for piece in form.locate(0, form.spec.count) if not form.operands else ():
                if isinstance(piece, ByteRange):
                    used.setdefault(id(piece.file), []).append(piece.offset)
    starts = {file: sorted(offsets) for file, offsets in used.items()}

    def is_used(record: Record) -> bool:
        offsets = starts.get(id(record.file), [])
        first = bisect_left(offsets, record.offset)
        return first < len(offsets) and offsets[first] < record.offset + record.size_bytes

    return [record for record in records if is_used(record)]


def _nothing_of(file: OutputFile) -> WrittenFile:
    """Return what is known before the first tensor: of a hashed file, the hash of its header."""
    return WrittenFile(sha256=hashlib.sha256(file.header).hexdigest() if file.is_hashed else "")


def _work(file: OutputFile) -> int:
    computed = sum(
        bool(tensor.operands) or tensor.initialisers is not None for _, tensor, _ in file.tensors
    )
    return file.size_bytes + _PER_COMPUTED * computed

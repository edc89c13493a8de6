"""Stream planned tensors to disk: byte ranges copied, the rest computed block by block."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surgeon.base.errors import CheckpointError, SurgeonError, WriteError
from surgeon.draft import Check
from surgeon.formats.checkpoint import Record
from surgeon.formats.safetensors import header_sha256
from surgeon.lazy import ByteRange, is_computed_at_once, walk
from surgeon.numeric.blas import is_pinned
from surgeon.output import units
from surgeon.output.blocks import blocks
from surgeon.output.calls import allocate, write_all
from surgeon.output.checksums import Algorithm, Running
from surgeon.output.layout import OutputFile
from surgeon.output.publish import Publication
from surgeon.output.units import Batch, Done, Unit, UnitWriter, units_of, whole_batch
from surgeon.output.workers import parallel_map, worthwhile

# The most units that one worker takes at a time.
_MOST_UNITS = 256
# What computing a tensor costs beside its bytes, in bytes.
_PER_COMPUTED = 64 << 10
# Files that are written at a time: a process may have few open, and its inputs are too.
_OPEN_AT_ONCE = 32
_NOT_PINNED = (
    "how many threads NumPy's linear algebra has cannot be set here, and the last bits of "
    "decompositions may depend on it; OMP_NUM_THREADS=1 settles it"
)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How to write: workers, checksums, whom to tell how many bytes are done, and a device.

    That is where matrices are decomposed, such as "cuda"; "" is NumPy.
    """

    workers: int = 2
    checksums: Algorithm = "crc32"
    progress: Progress | None = None
    device: str = ""


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


class Tally:
    """What is known of files from their units; those of a tensor are told in order."""

    def __init__(self, files: Iterable[OutputFile], algorithm: Algorithm) -> None:
        self.written = Written({file.name: _nothing_of(file) for file in files})
        self._algorithm = algorithm
        self._done: dict[str, dict[str, Done]] = {name: {} for name in self.written.files}

    def add(self, file: str, name: str, done: Done, *, is_there: bool) -> None:
        """Take note of a unit; of one that `is_there` already, in a linked file, nothing but it."""
        found, told = self.written.files[file], self._done[file]
        told[name] = told[name].then(done) if name in told else done
        if self._algorithm != "none":
            found.checksums[name] = told[name].checksum
        found.sha256 = done.file_sha256 or found.sha256
        if not is_there:
            self.written.copied_bytes += done.copied_bytes
            self.written.computed_bytes += done.size_bytes - done.copied_bytes

    def skip(self, file: OutputFile) -> None:
        """Take note of a file that is linked."""
        self.written.linked_bytes += file.size_bytes - len(file.header)

    def header(self, file: OutputFile) -> bytes:
        """Return the header that a file gets once all of its tensors are told."""
        told, header = self._done.pop(file.name), file.header
        if file.content_at >= 0:
            header = file.header_with(told[placed.name].crc32 for placed in file.tensors)
        self.written.files[file.name].header_sha256 = header_sha256(header)
        return header

    def complete(self, file: OutputFile, descriptor: int) -> None:
        """Give a file the fingerprint of its tensors; raises WriteError where it does not last."""
        header = self.header(file)
        if os.pread(descriptor, len(header), 0) != header and not file.source:
            write_all(descriptor, memoryview(header), 0)
        if os.pread(descriptor, len(header), 0) != header:
            raise WriteError(f"{file.name}: reads back with another header than was written")

    def complete_at(self, file: OutputFile, path: Path) -> None:
        """Complete a file that others wrote, and flush it; one that is linked is only looked at."""
        with path.open("rb" if file.source else "r+b", buffering=0) as opened:
            self.complete(file, opened.fileno())
            if not file.source:
                os.fsync(opened.fileno())


def pinning_notes(files: Iterable[OutputFile]) -> list[str]:
    """Say where last bits may depend on the machine."""
    at_once = (is_computed_at_once(placed.tensor) for file in files for placed in file.tensors)
    return [_NOT_PINNED] if not is_pinned() and any(at_once) else []


class Executor:
    """Checks, writes and verifies, with as many workers as there is work for."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._writer = UnitWriter(options.checksums)

    def check(self, checks: Sequence[tuple[str, Check]], size_bytes: int) -> list[str]:
        """Run the checks that look at tensor data, of about this size; return what they report."""
        workers = worthwhile(self._options.workers, size_bytes)
        return [note for note in parallel_map(self._check, checks, workers) if note]

    def _check(self, item: tuple[str, Check]) -> str | None:
        place, check = item
        try:
            note = check(self._writer.scratch)
        except SurgeonError as error:
            raise error.at(place) from None
        return f"{place}: {note}" if note else None

    @property
    def files_at_once(self) -> int:
        """How many files it is best given at a time."""
        return _OPEN_AT_ONCE

    def kept(self, plan: object) -> None:
        """Go on with nothing of an earlier run."""

    def write(self, files: Sequence[OutputFile], output: Publication) -> Written:
        """Write planned files; those with a `source` are there already."""
        described = {output.descriptor(file.name): file for file in files}
        tally = Tally(files, self._options.checksums)
        batches: list[Batch] = []
        for descriptor, file in described.items():
            if file.source is None:
                allocate(descriptor, file.size_bytes)
                write_all(descriptor, memoryview(file.header), 0)
                batches += self._batches(descriptor, file)
            else:
                tally.skip(file)
                if self._options.checksums != "none":
                    batches += self._batches(None, file)
                elif self._options.progress:
                    self._options.progress(file.size_bytes - len(file.header))
        self._run(batches, files, tally)
        for descriptor, file in described.items():
            tally.complete(file, descriptor)
        output.rest()
        return tally.written

    def measure(self, files: Sequence[OutputFile]) -> tuple[Written, dict[str, bytes]]:
        """Make files and write them nowhere; return their checksums, and their headers.

        What streams to where nobody can seek begins with a header that holds a fingerprint.
        """
        tally = Tally(files, self._options.checksums)
        self._run([batch for file in files for batch in self._batches(None, file)], files, tally)
        return tally.written, {file.name: tally.header(file) for file in files}

    def _run(self, batches: Sequence[Batch], files: Sequence[OutputFile], tally: Tally) -> None:
        """Have the workers take all batches."""
        workers = worthwhile(self._options.workers, sum(map(_work, files)))
        for batch, results in zip(
            batches, parallel_map(self._writer.write, batches, workers), strict=True
        ):
            for unit, done in zip(batch.units, results, strict=True):
                tally.add(batch.file, unit.name, done, is_there=batch.descriptor is None)
                if self._options.progress:
                    self._options.progress(done.size_bytes)
        tally.written.notes += pinning_notes(files)

    def verify_records(self, records: Sequence[Record], files: Sequence[OutputFile],
                       written: Written) -> None:  # fmt: skip
        """Compare what input files say of their bytes with what was read; raises CheckpointError.

        That is of those bytes that are in some of the files. A tensor that was copied whole has its
        checksum already; other records are read again.
        """
        self.verify(unverified(records, files, written))

    def verify(self, records: Sequence[Record]) -> None:
        """Compare what input files say of their bytes with what they are; reads them."""
        size_bytes = sum(record.size_bytes for record in records)
        workers = worthwhile(self._options.workers, size_bytes)
        for _ in parallel_map(self._verify, records, workers):
            pass

    def _verify(self, record: Record) -> None:
        running, piece = Running("crc32"), ByteRange(record.file, record.offset, record.size_bytes)
        for block in blocks(piece, self._writer.scratch, self._writer.buffer):
            running.update(block)
        _is_verified(record, f"crc32:{running.crc32:08x}")

    def _batches(self, descriptor: int | None, file: OutputFile) -> Iterator[Batch]:
        """Yield units in file order, small ones together, so that workers have enough for long."""
        batch: list[Unit] = []
        if file.is_hashed and file.tensors:
            yield whole_batch(file, self._options.checksums, descriptor)
            return
        for unit in units_of(file, self._options.checksums):
            batch.append(unit)
            if unit.offset - batch[0].offset >= units.UNIT // 2 or len(batch) == _MOST_UNITS:
                yield Batch(file.name, batch, descriptor)
                batch = []
        if batch:
            yield Batch(file.name, batch, descriptor)


def unverified(
    records: Sequence[Record], files: Sequence[OutputFile], written: Written
) -> list[Record]:
    """Return the records of what files are made of that writing did not verify.

    Raises CheckpointError where it found another checksum than is stated.
    """
    if not records:
        return []
    known: dict[tuple[int, int, int], str] = {}
    for file in files:
        for placed in file.tensors:
            pieces = list(placed.tensor.pieces(0, placed.tensor.spec.count))
            if len(pieces) == 1 and isinstance(piece := pieces[0], ByteRange):
                place = (id(piece.file), piece.offset, piece.size_bytes)
                known[place] = written.files[file.name].checksums.get(placed.name, "")
    return [
        record
        for record in _used(records, files)
        if not _is_verified(
            record, known.get((id(record.file), record.offset, record.size_bytes), "")
        )
    ]


def _is_verified(record: Record, found: str) -> bool:
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

"""Planned tensor files as streams to where nobody can seek: object storage.

A header holds a fingerprint of what follows it, so a file that is too large to be held is made
twice: once for its checksums, and once for its bytes, which have to be the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from surgeon.base.errors import WriteError
from surgeon.formats.safetensors import header_sha256
from surgeon.lazy import ByteRange, Scratch, walk
from surgeon.output.blocks import COPY_BUFFER, announce, blocks
from surgeon.output.checksums import Algorithm, Running
from surgeon.output.execute import Executor, Options, Progress, Written, WrittenFile
from surgeon.output.layout import OutputFile, Placed
from surgeon.output.workers import parallel_map
from surgeon.remote import client, wire
from surgeon.remote.client import Failure, Target

# Files up to this much are made once, in memory.
_HELD = 32 << 20
_LOOK_SECONDS = 0.2
# Seconds in which a worker may abort its upload.
_PATIENCE = 20.0
# Object storage takes at most 10 000 parts, of at least 5 MiB each.
_PART, _MOST_PARTS, _AT_ONCE = 8 << 20, 9_000, 4


@dataclass(frozen=True)
class _Task:
    """A file to be uploaded; `header` is known where it was measured before."""

    file: OutputFile
    target: Target
    header: bytes | None
    stated: Mapping[str, str]


@dataclass(frozen=True)
class _Uploaded:
    """What is known of a file that was uploaded; travels from process to process."""

    found: WrittenFile
    copied_bytes: int
    computed_bytes: int
    failure: Failure | None = None


class Uploader:
    """Makes files and uploads them, as many at a time as there are workers."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._silent = Executor(replace(options, progress=None))
        self._own = threading.local()

    def upload(
        self, files: Sequence[OutputFile], targets: Mapping[str, Target],
        failed: Callable[[str, Failure], WriteError],
    ) -> Written:  # fmt: skip
        """Upload files to their targets, by name; `failed` makes an error of what went wrong."""
        has_content = self._options.checksums != "none"
        twice = [f for f in files if f.size_bytes > _HELD and f.content_at >= 0 and has_content]
        measured, headers = self._silent.measure(twice)
        tasks = []
        for file in files:
            header = headers.get(file.name)
            if header is None and (file.content_at < 0 or not has_content):
                header = file.header
            stated = measured.files[file.name].checksums if file.name in headers else {}
            tasks.append(_Task(file, targets[file.name], header, stated))
        written = Written(notes=measured.notes)
        wire.share()  # with the workers, which are forked next
        done = parallel_map(
            self._upload, tasks, self._options.workers, apart=True, patience=_PATIENCE
        )
        with _watched(self._options.progress):
            for task, one in zip(tasks, done, strict=True):
                if one.failure is not None:
                    raise failed(task.file.name, one.failure)
                written.files[task.file.name] = one.found
                written.copied_bytes += one.copied_bytes
                written.computed_bytes += one.computed_bytes
        return written

    def _upload(self, task: _Task) -> _Uploaded:
        run = _Stream(task.file, self._options.checksums, self._scratch())
        try:
            if task.header is None:
                body = [bytes(block) for block in run.blocks()]
                header = task.file.header_with(run.crcs())
                stream = iter([header, *body])
            else:
                header = task.header
                stream = self._checked(task, run)
            if task.file.size_bytes <= _HELD:
                client.put(task.target, b"".join(stream))
            else:
                part = _part_bytes(task.file.size_bytes)
                client.upload(task.target, _joined(stream, part), part, _AT_ONCE)
        except Failure as failure:
            return _Uploaded(WrittenFile(), 0, 0, failure)
        found = run.found(header)
        return _Uploaded(found, run.copied_bytes, run.computed_bytes)

    def _checked(self, task: _Task, run: _Stream) -> Iterator[bytes]:
        assert task.header is not None
        yield task.header
        yield from run.blocks()
        if task.stated and run.checksums != task.stated:
            wrong = [name for name in task.stated if run.checksums.get(name) != task.stated[name]]
            raise WriteError(
                f"{task.file.name}: '{wrong[0]}' was made otherwise the second time; an input "
                "changed, or the memory is not to be trusted"
            )

    def _scratch(self) -> Scratch:
        if not hasattr(self._own, "scratch"):
            self._own.scratch = Scratch()
        scratch: Scratch = self._own.scratch
        return scratch


class _Stream:
    """The data of one file, made in order, and what becomes known of it."""

    def __init__(self, file: OutputFile, algorithm: Algorithm, scratch: Scratch) -> None:
        self.file = file
        self.copied_bytes = self.computed_bytes = 0
        self.checksums: dict[str, str] = {}
        self._algorithm = algorithm
        self._scratch = scratch
        self._crcs: dict[str, int] = {}
        self._hashing = hashlib.sha256(file.header) if file.is_hashed else None

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes behind the header."""
        buffer = memoryview(bytearray(COPY_BUFFER))
        announce((one.tensor, 0, one.tensor.spec.count) for one in self.file.tensors)
        for placed in self.file.tensors:
            yield from self._blocks_of(placed, buffer)

    def _blocks_of(self, placed: Placed, buffer: memoryview) -> Iterator[bytes]:
        tensor, count = placed.tensor, placed.tensor.spec.count
        self._scratch.forget(walk(tensor))
        running = Running(self._algorithm, self._hashing, has_crc32=self._algorithm != "none")
        for piece in tensor.pieces(0, count) if count else ():
            for block in blocks(piece, self._scratch, buffer):
                running.update(block)
                if isinstance(piece, ByteRange):
                    self.copied_bytes += len(block)
                else:
                    self.computed_bytes += len(block)
                wire.count_sent(len(block))
                yield bytes(block)
        self._crcs[placed.name] = running.crc32
        if self._algorithm != "none":
            is_hash = bool(running.sha256)
            digest = f"sha256:{running.sha256}" if is_hash else f"crc32:{running.crc32:08x}"
            self.checksums[placed.name] = digest

    def crcs(self) -> Iterator[int]:
        """Yield the CRC-32 of each tensor, in the file's order."""
        return (self._crcs[placed.name] for placed in self.file.tensors)

    def found(self, header: bytes) -> WrittenFile:
        """Return what is known now that all of it was made."""
        whole = self._hashing.hexdigest() if self._hashing else ""
        return WrittenFile(self.checksums, whole, header_sha256(header))


def _part_bytes(size_bytes: int) -> int:
    """Return how large the parts of a file are, so that it has no more than are taken."""
    needed = -(-size_bytes // _MOST_PARTS)
    return max(_PART, -(-needed // (1 << 20)) << 20)


@contextmanager
def _watched(progress: Progress | None) -> Iterator[None]:
    """Tell of bytes as the workers give them to be sent."""
    if progress is None:
        yield
        return
    ended, told = threading.Event(), wire.sent()

    def watch() -> None:
        nonlocal told
        is_last = False
        while not is_last:
            is_last = ended.wait(_LOOK_SECONDS)
            now = wire.sent()
            progress(now - told)
            told = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _joined(stream: Iterator[bytes], size_bytes: int) -> Iterator[bytes]:
    """Put blocks together to what is sent at once, however small they are."""
    held: list[bytes] = []
    total = 0
    for block in stream:
        held.append(block)
        total += len(block)
        if total >= size_bytes:
            yield b"".join(held)
            held, total = [], 0
    if held:
        yield b"".join(held)

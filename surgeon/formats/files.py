"""Input files that are read by position; noticed where they change meanwhile."""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.base.deferred import np
from surgeon.base.errors import CheckpointError
from surgeon.base.files import open_regular
from surgeon.numeric.dtypes import Array

# What a process has open besides its inputs: the output, libraries, pipes.
_OTHER_FILES = 64
# Where torch puts what describes an archive of one tensor, at its front and at its end.
_END_BYTES = 1536


class InputFile:
    """A regular file, open for positional reads; never blocks on a FIFO or a device.

    Where there are more files than a process may have open, it is opened again for each read.
    Raises CheckpointError where another file, or another content, has taken its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = _opened(path)
        status = os.fstat(self._descriptor)
        self.size_bytes = status.st_size
        self._modified = status.st_mtime_ns
        self._identity = status.st_dev, status.st_ino
        self._lock = threading.Lock()
        # Where to find it again; empty for a file that stays open.
        self._again = "" if _POOL.has_room() else os.path.abspath(path)  # noqa: PTH100 (bytes stay)
        if self._again:
            _POOL.rest(self)

    def fileno(self) -> int | None:
        """The file descriptor; None where the file does not stay open."""
        if self._again or self._descriptor is None:
            return None
        self._check(self._descriptor)
        return self._descriptor

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Give a file descriptor for as long as a `with` takes."""
        if not self._again:
            assert self._descriptor is not None
            self._check(self._descriptor)
            yield self._descriptor
            return
        with self._lock:
            kept = self._descriptor
            descriptor = _opened(self.path, self._again) if kept is None else kept
            try:
                self._check(descriptor)
                yield descriptor
            finally:
                if kept is None:
                    os.close(descriptor)

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file is no longer what it was when it was opened."""
        with self.descriptor():
            pass

    def _check(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        is_same = (status.st_size, status.st_mtime_ns) == (self.size_bytes, self._modified)
        if is_same and (not self._again or (status.st_dev, status.st_ino) == self._identity):
            return
        sizes = f"it had {self.size_bytes} bytes, and has {status.st_size}"
        if status.st_size == self.size_bytes:
            sizes = "its bytes, or when they were written, are others than before"
        raise CheckpointError(
            f"{self.path}: was changed while it was read: {sizes}; run again once nothing writes "
            "to it"
        )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on; raises CheckpointError where the file ends early."""
        if self._again:
            with self.descriptor() as descriptor:
                self._fill(descriptor, offset, buffer)
        else:
            assert self._descriptor is not None
            self._fill(self._descriptor, offset, buffer)

    def _fill(self, descriptor: int, offset: int, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            try:
                rest = [buffer[filled:] if filled else buffer]
                got = os.preadv(descriptor, rest, offset + filled)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
            if not got:
                self._check(descriptor)
                raise CheckpointError(f"{self.path}: ends at byte {offset + filled}")
            filled += got
        self._check(descriptor)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file; for headers."""
        buffer = bytearray(size_bytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def mapped(self, offset: int, size_bytes: int) -> Array:
        """Return a read-only uint8 view of bytes of the file; unmapped when it is let go.

        Checked at each call, since reading behind the end of a file that shrinks kills the process.
        """
        if not size_bytes:
            return np.empty(0, np.uint8)
        page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with self.descriptor() as descriptor:
            try:
                pages = mmap.mmap(
                    descriptor, offset - page + size_bytes, access=mmap.ACCESS_READ, offset=page
                )
            except (OSError, ValueError) as error:
                self._check(descriptor)
                raise CheckpointError(f"{self.path}: cannot be mapped: {error}") from None
        return np.frombuffer(pages, np.uint8)[offset - page :]

    def close(self) -> None:
        """Close the file; whoever opened it does so once."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)
                _POOL.held -= not self._again

    def rest(self) -> None:
        """Close a file that is opened again when it is read."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None


def _opened(path: Path, place: str = "") -> int:
    """Return a descriptor of the file at `place`, or else at `path`."""
    try:
        return open_regular(Path(place) if place else path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


class _Pool:
    """Counts the files that stay open, over all checkpoints of a process."""

    def __init__(self) -> None:
        self.held = 0
        self._most = 0
        # Of those that do not stay open the one whose header is being read.
        self._latest: InputFile | None = None

    def has_room(self) -> bool:
        """Say whether one more file may stay open; then it is counted."""
        if self.held >= self._most:
            self._most = _raised_limit(self.held + 1 + _OTHER_FILES) - _OTHER_FILES
        if self.held >= self._most:
            return False
        self.held += 1
        return True

    def rest(self, file: InputFile) -> None:
        """Keep a file open until the next one that does not stay so."""
        latest, self._latest = self._latest, file
        if latest is not None:
            latest.rest()


def _raised_limit(needed: int) -> int:
    """Raise the soft limit on open files, as far as the hard one allows, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    if soft < needed:
        most = 2 * needed if hard == resource.RLIM_INFINITY else min(2 * needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return soft


_POOL = _Pool()


class Window:
    """A part of a file, with offsets of its own; the file is closed by whoever opened it.

    Its first and last bytes, where an archive describes itself, are read at once.
    """

    def __init__(self, file: InputFile, offset: int, size_bytes: int) -> None:
        self.path = file.path
        self.size_bytes = size_bytes
        self._file = file
        self._offset = offset
        if size_bytes <= 2 * _END_BYTES:
            self._head = self._tail = file.read(offset, size_bytes)
        else:
            self._head = file.read(offset, _END_BYTES)
            self._tail = file.read(offset + size_bytes - _END_BYTES, _END_BYTES)

    def fileno(self) -> int | None:
        return None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on; raises CheckpointError where the file ends early."""
        self._file.read_into(self._offset + offset, buffer)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the part; for headers."""
        if offset + size_bytes <= len(self._head):
            return self._head[offset : offset + size_bytes]
        within = offset - self.size_bytes + len(self._tail)
        if within >= 0 and offset + size_bytes <= self.size_bytes:
            return self._tail[within : within + size_bytes]
        return self._file.read(self._offset + offset, size_bytes)

    def close(self) -> None:
        """The file stays open."""

    def mapped(self, offset: int, size_bytes: int) -> Array:
        """Return a read-only uint8 view of bytes of the part."""
        return self._file.mapped(self._offset + offset, size_bytes)

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file is no longer what it was when it was opened."""
        self._file.check_unchanged()


class InMemory:
    """Bytes of an input file that had to be loaded, or made."""

    def __init__(self, path: Path, data: Array) -> None:
        self.path = path
        self._data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)].data

    def mapped(self, offset: int, size_bytes: int) -> Array:
        return self._data[offset : offset + size_bytes]

    def check_unchanged(self) -> None:
        """Memory stays as it is."""

    def fileno(self) -> int | None:
        return None

"""Input files that are read by position."""

from __future__ import annotations

import mmap
import os
import resource
from contextlib import suppress
from pathlib import Path

import numpy as np

from surgeon.base.errors import CheckpointError
from surgeon.base.files import open_regular
from surgeon.numeric.dtypes import Array

# What a process has open besides its inputs: the output, libraries, pipes.
_OTHER_FILES = 64


class InputFile:
    """A regular file, open for positional reads; never blocks on a FIFO or a device."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None
        self.size_bytes = os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        return self._descriptor

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on; raises CheckpointError where the file ends early."""
        filled = 0
        while filled < len(buffer):
            try:
                rest = [buffer[filled:] if filled else buffer]
                got = os.preadv(self._descriptor, rest, offset + filled)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
            if not got:
                raise CheckpointError(f"{self.path}: ends at byte {offset + filled}")
            filled += got

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file; for headers."""
        buffer = bytearray(size_bytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def mapped(self, offset: int, size_bytes: int) -> Array:
        """Return a read-only uint8 view of bytes of the file; unmapped when it is let go."""
        if not size_bytes:
            return np.empty(0, np.uint8)
        page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        pages = mmap.mmap(
            self._descriptor, offset - page + size_bytes, access=mmap.ACCESS_READ, offset=page
        )
        return np.frombuffer(pages, np.uint8)[offset - page :]

    def close(self) -> None:
        os.close(self._descriptor)


class Window:
    """A part of a file, with offsets of its own; the file is closed by whoever opened it."""

    def __init__(self, file: InputFile, offset: int, size_bytes: int) -> None:
        self.path = file.path
        self.size_bytes = size_bytes
        self._file = file
        self._offset = offset

    def fileno(self) -> int | None:
        return None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on; raises CheckpointError where the file ends early."""
        self._file.read_into(self._offset + offset, buffer)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the part; for headers."""
        return self._file.read(self._offset + offset, size_bytes)

    def close(self) -> None:
        """The file stays open."""

    def mapped(self, offset: int, size_bytes: int) -> Array:
        """Return a read-only uint8 view of bytes of the part."""
        return self._file.mapped(self._offset + offset, size_bytes)


class InMemory:
    """Bytes of an input file that had to be loaded, or made."""

    def __init__(self, path: Path, data: Array) -> None:
        self.path = path
        self._data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)].data

    def mapped(self, offset: int, size_bytes: int) -> Array:
        return self._data[offset : offset + size_bytes]

    def fileno(self) -> int | None:
        return None


def allow_open_files(count: int) -> None:
    """Raise the soft limit on open files, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):  # opening says what is wrong, should it still fail
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

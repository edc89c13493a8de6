"""Input files that are elsewhere: the same answers as a file's, by requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

from surgeon.base.deferred import np
from surgeon.base.errors import CheckpointError
from surgeon.formats.files import InputFile
from surgeon.lazy import ByteSource
from surgeon.numeric.dtypes import Array
from surgeon.remote import reader
from surgeon.remote.paths import RemotePath

# Tensors that are in memory whole since their elements move, of each file.
_WHOLE = 2
_opened: list[bool] = []


def open_input(path: Path) -> InputFile:
    """Open an input file, be it on this machine or elsewhere."""
    return FetchedFile(path) if isinstance(path, RemotePath) else InputFile(path)


class FetchedFile(InputFile):
    """A file that is fetched in ranges; every answer has to be of the content that was opened."""

    def __init__(self, path: RemotePath) -> None:
        _opened[:] = [True]
        self.path = path
        self.reader = reader.Reader(path)
        self.size_bytes = self.reader.size_bytes
        self._whole: dict[tuple[int, int], Array] = {}

    def fileno(self) -> int | None:
        return None

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        raise CheckpointError(f"{self.path}: is elsewhere, and here a file is needed")
        yield

    def check_unchanged(self) -> None:
        """Every answer was checked."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reader.read_into(offset, buffer)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self.reader.read(offset, size_bytes)

    def gather(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.reader.gather(ranges)

    def whole(self, offset: int, size_bytes: int) -> Array | None:
        """Return bytes of the file, which are then in memory: they are asked for block by block."""
        if (kept := self._whole.get((offset, size_bytes))) is not None:
            return kept
        data = np.empty(size_bytes, np.uint8)
        if size_bytes:
            self.reader.read_into(offset, data.data)
        while len(self._whole) >= _WHOLE:
            self._whole.pop(next(iter(self._whole), (0, 0)), None)
        self._whole[offset, size_bytes] = data
        return data

    def close(self) -> None:
        """There is nothing open; what is in memory goes."""
        self._whole.clear()
        self.reader.close()

    def rest(self) -> None:
        """There is nothing open."""


def is_any_fetched() -> bool:
    """Say whether this process has opened a file that is elsewhere."""
    return bool(_opened)


def is_fetched(file: ByteSource) -> TypeGuard[FetchedFile]:
    """Say whether a file is elsewhere."""
    return isinstance(file, FetchedFile)


def will_read(wanted: Iterable[tuple[ByteSource, int, int]]) -> None:
    """Say which bytes a worker reads next, in order, so that they are on their way."""
    remote = []
    for file, start, stop in wanted:
        if is_fetched(file):
            remote.append((file.reader, start, stop))
        elif (descriptor := file.fileno()) is not None and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # on what has no cache
                os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
    if remote:
        reader.will_read(remote)

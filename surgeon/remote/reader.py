"""Bytes of files that are elsewhere, in ranges of megabytes, several on their way at a time.

Each process holds a bounded number of ranges. Who knows what will be read says so (`will_read`),
and the ranges are cut from that; of anything else, ranges follow a grid and one another.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from surgeon.base.errors import CheckpointError
from surgeon.remote import cache, calls, client, wire
from surgeon.remote.client import Failure, Got, Identity
from surgeon.remote.paths import START_BYTES, RemotePath

if TYPE_CHECKING:
    from concurrent.futures import Future

RANGE_BYTES = 8 << 20
# Ranges that a process holds, and how many of them are on their way before they are asked for.
HELD, AHEAD = 12, 3
# Bytes between two ranges that are cheaper to fetch than another request.
_GAP = 256 << 10
# Of what is read a little at a time, the bytes that are kept: headers, a zip file's directory.
_SMALL = 1 << 20


class Range(NamedTuple):
    """Bytes of a file that are fetched together."""

    reader: Reader
    start: int
    stop: int


class Reader:
    """A file elsewhere, read by position; what it is now it has to stay."""

    def __init__(self, path: RemotePath) -> None:
        got = path.start()
        if got is None:
            raise path.absent()
        wire.share()
        self.path = path
        self.identity: Identity = got.identity
        self.size_bytes = got.identity.size_bytes
        self.target = path.target
        self._small: list[tuple[int, bytes]] = [(0, got.data)]

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of a header, or of another small thing; near the end, all up to it."""
        if (found := self._known(offset, size_bytes)) is not None:
            return found
        start = offset
        if self.size_bytes - START_BYTES <= offset and offset + size_bytes <= self.size_bytes:
            start = max(self.size_bytes - START_BYTES, 0)
            self._keep(start, self._fetched(start, self.size_bytes))
        elif size_bytes <= _SMALL:
            self._keep(start, self._fetched(offset, offset + size_bytes))
        else:
            return self._fetched(offset, offset + size_bytes)
        found = self._known(offset, size_bytes)
        assert found is not None
        return found

    def gather(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch small ranges, of starts and sizes, at the same time; `read` then has them."""
        missing = [(at, size) for at, size in ranges if self._known(at, size) is None]
        wanted = [(self.target, at, min(at + size, self.size_bytes), self.identity)
                  for at, size in missing]  # fmt: skip
        for (start, _), got in zip(missing, calls.run(client.fetch_several, wanted), strict=True):
            if isinstance(got, Failure):
                raise self.path.error(got)
            wire.count(len(got.data))
            self._keep(start, got.data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; raises CheckpointError where the file ends, or has changed."""
        if offset + len(buffer) > self.size_bytes:
            raise CheckpointError(f"{self.path}: ends at byte {self.size_bytes}")
        first = self._small[0][1]
        if offset + len(buffer) <= len(first):  # a small file came whole with its header
            buffer[:] = first[offset : offset + len(buffer)]
            return
        filled = 0
        while filled < len(buffer):
            place = offset + filled
            start, data = _held().at(self, place)
            part = data[place - start : place - start + len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)

    def begin(self, start: int, stop: int) -> Future[tuple[Got, bool]]:
        """Have a range fetched."""
        request = calls.start(
            cache.fetch, self.target, str(self.path), start, stop, self.identity,
            cache.directory(),
        )  # fmt: skip
        request.add_done_callback(_count)
        return request

    def finished(self, request: Future[tuple[Got, bool]]) -> bytes:
        """Return what was fetched. Raises CheckpointError."""
        try:
            return calls.result_of(request)[0].data
        except Failure as failure:
            raise self.path.error(failure) from None

    def close(self) -> None:
        """Let go of what is held of it."""
        _held().drop(self)

    def _fetched(self, start: int, stop: int) -> bytes:
        if stop > self.size_bytes:
            raise CheckpointError(f"{self.path}: ends at byte {self.size_bytes}")
        return self.finished(self.begin(start, stop))

    def _known(self, offset: int, size_bytes: int) -> bytes | None:
        for start, data in self._small:
            if start <= offset and offset + size_bytes <= start + len(data):
                return data[offset - start : offset - start + size_bytes]
        return None

    def _keep(self, start: int, data: bytes) -> None:
        self._small.append((start, data))


def _count(request: Future[tuple[Got, bool]]) -> None:
    if not request.cancelled() and request.exception() is None:
        got, is_new = request.result()
        if is_new:
            wire.count(len(got.data))


class _Held:
    """The ranges that a process has, or is about to have."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._ranges: OrderedDict[Range, Future[tuple[Got, bool]]] = OrderedDict()
        # What will be read, in order; and for each file, where its ranges begin.
        self._order: list[Range] = []
        self._starts: dict[Reader, list[tuple[int, int]]] = {}
        self._latest: dict[Reader, int] = {}
        self.most = _most[0]

    @property
    def _ahead(self) -> int:
        """How many ranges are on their way while one is read."""
        return max(1, min(AHEAD, self.most // 3))

    def announce(self, ranges: Iterable[Range]) -> None:
        with self._lock:
            self._order = list(ranges)
            self._starts = {}
            for number, one in enumerate(self._order):
                self._starts.setdefault(one.reader, []).append((one.start, number))
            for starts in self._starts.values():
                starts.sort()
            self._begin(self._order[: self._ahead])

    def at(self, reader: Reader, place: int) -> tuple[int, bytes]:
        """Return the range that a byte is in: where it begins, and its bytes."""
        with self._lock:
            wanted, following = self._range_at(reader, place)
            self._begin([wanted, *following])
            request = self._ranges[wanted]
        try:
            return wanted.start, reader.finished(request)
        except CheckpointError:
            with self._lock:
                self._ranges.pop(wanted, None)
            raise

    def drop(self, reader: Reader) -> None:
        """Let go of what is held of a file."""
        with self._lock:
            for one in [one for one in self._ranges if one.reader is reader]:
                del self._ranges[one]
            self._latest.pop(reader, None)
            if self._starts.pop(reader, None):
                self._order, self._starts = [], {}

    def _begin(self, ranges: Sequence[Range]) -> None:
        for one in ranges:
            if one in self._ranges:
                self._ranges.move_to_end(one)
            else:
                self._ranges[one] = one.reader.begin(one.start, one.stop)
        while len(self._ranges) > max(self.most, len(ranges)):
            self._ranges.popitem(last=False)

    def _range_at(self, reader: Reader, place: int) -> tuple[Range, list[Range]]:
        starts = self._starts.get(reader, [])
        if (found := bisect_right(starts, (place, len(self._order)))) > 0:
            number = starts[found - 1][1]
            if place < self._order[number].stop:
                return self._order[number], self._order[number + 1 : number + 1 + self._ahead]
        cell, last = place // RANGE_BYTES, self._latest.get(reader, -1)
        self._latest[reader] = cell
        ahead = self._ahead - 1 if cell in (last, last + 1) else 0
        cells = [self._cell(reader, cell + more) for more in range(ahead + 1)]
        return cells[0], [one for one in cells[1:] if one.start < one.stop]

    def _cell(self, reader: Reader, number: int) -> Range:
        start = number * RANGE_BYTES
        return Range(reader, start, min(start + RANGE_BYTES, reader.size_bytes))


_mine: list[_Held] = []
# Of each process that is forked from now on.
_most = [HELD]


def hold(ranges: int) -> None:
    """Have this process, and those that it forks, hold so many ranges, or as many as it needs."""
    _most[0] = max(1, min(ranges, HELD))
    _held().most = _most[0]


def _held() -> _Held:
    if not _mine or _mine[0].process != os.getpid():
        _mine[:] = [_Held()]
    return _mine[0]


def will_read(wanted: Iterable[tuple[Reader, int, int]]) -> None:
    """Say which bytes this process reads next, in order: readers, starts and stops.

    What follows closely in a file is fetched together with what was before it.
    """
    ranges: list[Range] = []
    latest: dict[Reader, int] = {}
    for reader, start, stop in wanted:
        number = latest.get(reader, -1)
        if number >= 0 and 0 <= start - ranges[number].stop <= _GAP:
            begin = ranges[number].start
            end = max(min(begin + RANGE_BYTES, stop), ranges[number].stop)
            ranges[number] = Range(reader, begin, end)
            start = max(start, end)
        for at in range(start, stop, RANGE_BYTES):
            latest[reader] = len(ranges)
            ranges.append(Range(reader, at, min(at + RANGE_BYTES, stop)))
    _held().announce(ranges)

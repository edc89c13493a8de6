"""The state of a pickle that is being read as data: its stack, its memo, and what they may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_LONGEST_LINE = 4096
# What a pickle may become in memory. One byte makes a list of 64 bytes; one that describes tensors
# becomes six times as large, with all that it keeps in its memo.
_MEMORY_FLOOR, _MEMORY_PER_BYTE, _MEMORY_CEILING = 80_000_000, 6, 640_000_000


class World(Protocol):
    """What a pickle may refer to; each method raises ValueError to refuse."""

    def find(self, module: str, name: str) -> object:
        """Return what stands for a global."""
        ...

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        """Return what stands for the result of a call."""
        ...

    def build(self, value: object, state: object) -> None:
        """Take note of the state of an object."""
        ...

    def extend(self, value: object, items: Sequence[object]) -> None:
        """Take note of the items of an object that is no plain container."""
        ...

    def update(self, value: object, items: Sequence[tuple[object, object]]) -> None:
        """Take note of keys and values of an object that is no plain dict."""
        ...

    def storage(self, identity: object) -> object:
        """Return what stands for a persistent id."""
        ...


class EndsEarlyError(ValueError):
    """A pickle has more bytes than were given."""


class Machine:
    """The state of a pickle that is being read."""

    def __init__(self, data: bytes, world: World) -> None:
        self.data = data
        self.world = world
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self._limit = min(_MEMORY_FLOOR + _MEMORY_PER_BYTE * len(data), _MEMORY_CEILING)
        self._left = self._limit

    def spend(self, size_bytes: int) -> None:
        """Count what an object takes in memory."""
        self._left -= size_bytes
        if self._left < 0:
            raise ValueError(
                f"found {len(self.data)} bytes that become more than {self._limit // 1_000_000} MB "
                "of objects, which no checkpoint's description does; save the tensors without the "
                "rest"
            )

    def since_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def bytes_at(self, start: int, length: int) -> bytes:
        """Return bytes of the pickle; a length is believed only as far as bytes remain."""
        if start + length > len(self.data):
            raise EndsEarlyError(
                f"found a length of {length}, expected at most {len(self.data) - start}"
            )
        return self.data[start : start + length]

    def line_at(self, start: int) -> str:
        end = self.data.find(b"\n", start, start + _LONGEST_LINE)
        if end < 0:
            failure = EndsEarlyError if len(self.data) - start < _LONGEST_LINE else ValueError
            raise failure("found a line without an end")
        return self.data[start:end].decode("utf-8")

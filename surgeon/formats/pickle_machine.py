"""The state of a pickle that is being read as data: its stack, its memo, and what they may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_LONGEST_LINE = 4096
# What a pickle may become in memory. One byte makes a list of 72 bytes; one that describes tensors
# becomes ten times as large, with all that it keeps in its memo.
_MEMORY_FLOOR, _MEMORY_PER_BYTE, _MEMORY_CEILING = 80_000_000, 24, 350_000_000
# What an entry of the memo takes, in a list and in a dict.
IN_ORDER, _OUT_OF_ORDER = 10, 100


class World(Protocol):
    """What a pickle may refer to; each method raises ValueError or TypeError to refuse.

    So does each that a world says nothing about.
    """

    def find(self, module: str, name: str) -> object:
        """Return what stands for a global."""
        raise TypeError

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        """Return what stands for the result of a call."""
        raise TypeError

    def build(self, value: object, state: object) -> None:
        """Take note of the state of an object."""
        raise TypeError

    def extend(self, value: object, items: Sequence[object]) -> None:
        """Take note of the items of an object that is no plain container."""
        raise TypeError

    def update(self, value: object, items: Sequence[tuple[object, object]]) -> None:
        """Take note of keys and values of an object that is no plain dict."""
        raise TypeError

    def storage(self, identity: object) -> object:
        """Return what stands for a persistent id."""
        raise TypeError


class EndsEarlyError(ValueError):
    """A pickle has more bytes than were given."""


class Machine:
    """The state of a pickle that is being read."""

    def __init__(self, data: bytes, world: World) -> None:
        self.data = data
        self.world = world
        self.stack: list[object] = []
        self.marks: list[int] = []
        # By number; picklers count from 0, and what does not is in a dict.
        self.memo: list[object] = []
        self._scattered: dict[int, object] = {}
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

    def remember(self, number: int) -> None:
        """Keep the value on top of the stack under a number."""
        if number == len(self.memo):
            self.spend(IN_ORDER)
            self.memo.append(self.stack[-1])
        elif 0 <= number < len(self.memo):
            self.memo[number] = self.stack[-1]
        else:
            self.spend(_OUT_OF_ORDER)
            self._scattered[number] = self.stack[-1]

    def remembered(self, number: int) -> object:
        """Return the value that is kept under a number."""
        if number < len(self.memo):
            return self.memo[number]
        return self._scattered[number]

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

"""The arrays that a worker uses again and again, and what it knows of the tensor at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from surgeon.base.deferred import np
from surgeon.numeric.dtypes import Array

# Views that are kept of one array; every odd size of a last block needs its own.
_MOST_VIEWS = 100

Value = TypeVar("Value")


class _Slot:
    """Memory for one array at a time, and the views that were taken of it."""

    __slots__ = ("buffer", "views")

    def __init__(self) -> None:
        self.buffer = np.empty(0, np.uint8)
        self.views: dict[tuple[np.dtype[Any] | type, int], Array] = {}

    def view(self, dtype: np.dtype[Any] | type, count: int) -> Array:
        size_bytes = np.dtype(dtype).itemsize * count
        if self.buffer.nbytes < size_bytes:
            self.buffer = np.empty(size_bytes, np.uint8)
            self.views = {}
        if len(self.views) >= _MOST_VIEWS:
            self.views.clear()
        view = self.views[dtype, count] = self.buffer[:size_bytes].view(dtype)
        return view


class Scratch:
    """Arrays that one worker uses again for every block; `take` never zeroes.

    Besides, what that worker knows of the tensor at hand: see `known`. Each worker has its own.
    """

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._used = 0
        self._known: dict[int, tuple[object, Any]] = {}
        self._prepared: dict[int, object] = {}

    def known(self, owner: object, compute: Callable[[Scratch], Value]) -> Value:
        """Return what `compute` gave for this owner, as long as it is not forgotten."""
        if id(owner) not in self._known:
            with self.scope():
                self._known[id(owner)] = owner, compute(self)
        value: Value = self._known[id(owner)][1]
        return value

    def is_prepared(self, owner: object) -> bool:
        """Say whether this was asked for the owner before, as long as it is not forgotten."""
        if self._prepared.get(id(owner)) is owner:
            return True
        self._prepared[id(owner)] = owner
        return False

    def forget(self, needed: Iterable[object]) -> None:
        """Let go of everything that is known of other owners than these."""
        if self._known or self._prepared:
            ids = set(map(id, needed))
            self._known = {key: kept for key, kept in self._known.items() if key in ids}
            self._prepared.clear()

    def take(self, dtype: np.dtype[Any] | type, count: int) -> Array:
        """Return an array of `count` elements, valid until the enclosing scope ends."""
        if self._used == len(self._slots):
            self._slots.append(_Slot())
        slot = self._slots[self._used]
        self._used += 1
        view = slot.views.get((dtype, count))
        return slot.view(dtype, count) if view is None else view

    def scope(self) -> _Scope:
        """Give back, at the end of a `with`, what was taken inside."""
        return _Scope(self)


class _Scope:
    """Not a generator: there are several in each block."""

    __slots__ = ("_before", "_scratch")

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch

    def __enter__(self) -> _Scope:
        self._before = self._scratch._used
        return self

    def __exit__(self, *failure: object) -> None:
        self._scratch._used = self._before

    def keep(self, array: Array) -> Array:
        """Have an array outlive the scope, into the one around it; all others are given back."""
        slots = self._scratch._slots
        for number in range(self._before, self._scratch._used):
            if slots[number].buffer is array.base:
                slots[self._before], slots[number] = slots[number], slots[self._before]
                self._before += 1
                break
        return array

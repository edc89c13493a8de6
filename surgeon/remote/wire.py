"""How much was fetched, by this process and by the workers that it forks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class _Counters:
    """Counts that forked workers add to, where the system has what they share."""

    def __init__(self) -> None:
        self.shared: Any = None
        self.own = [0, 0, 0]

    def share(self) -> None:
        if self.shared is None:
            from multiprocessing import get_context

            try:
                self.shared = get_context("fork").Array("Q", 3)
            except (OSError, ImportError, ValueError):  # a read-only /dev/shm
                self.shared = self.own


_counters = _Counters()


def share() -> None:
    """Have workers that are forked from now on count here."""
    _counters.share()


def count(size_bytes: int) -> None:
    """Count a request, and the bytes that it gave."""
    _add(1, size_bytes, 0)


def count_sent(size_bytes: int) -> None:
    """Count bytes that were given to be sent."""
    _add(0, 0, size_bytes)


def _add(*more: int) -> None:
    shared = _counters.shared or _counters.own
    with nullcontext() if isinstance(shared, list) else shared.get_lock():
        for place, number in enumerate(more):
            shared[place] += number


def fetched() -> tuple[int, int]:
    """Return how many requests were made for bytes, and how many bytes they gave."""
    shared = _counters.shared or _counters.own
    return int(shared[0]), int(shared[1])


def sent() -> int:
    """Return how many bytes were given to be sent."""
    return int((_counters.shared or _counters.own)[2])

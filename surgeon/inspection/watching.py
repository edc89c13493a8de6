"""Who is told how much of what there is to read has been read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Called with the bytes that were read since the last call.
Done = Callable[[int], None]
# Given all bytes that there are to read; None where nobody watches.
Watch = Callable[[int], AbstractContextManager[Done | None]]


def unwatched(total_bytes: int) -> AbstractContextManager[None]:
    """Let nobody watch."""
    return nullcontext()

"""Python's search for cycles, put off where many objects are made and no cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Search for no cycles meanwhile: of a million new objects that takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def spared_from_collection() -> Iterator[None]:
    """Leave everything that there is now out of searches for cycles; forked workers share it too.

    Where a program has done so for itself, that stays as it is.
    """
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()

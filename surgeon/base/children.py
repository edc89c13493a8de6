"""Processes that this one has forked."""

from __future__ import annotations

import time
from collections.abc import Collection
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

_AGAIN_SECONDS = 0.2


def end_children(others: Collection[BaseProcess], patience: float = 0) -> None:
    """Kill all children but others, which a program that uses the library may have.

    With patience, in seconds, they are told to end first, and again: one that is new loses signals.
    """
    children = set(active_children()) - set(others)
    until = time.monotonic() + patience
    while children and time.monotonic() < until:
        for child in children:
            child.terminate()
        for child in children:
            child.join(_AGAIN_SECONDS)
        children = {child for child in children if child.is_alive()}
    for child in children:
        child.kill()
        child.join()

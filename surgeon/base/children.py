"""Processes that this one has forked."""

from __future__ import annotations

from collections.abc import Collection
from multiprocessing import active_children
from multiprocessing.process import BaseProcess


def kill_children(others: Collection[BaseProcess]) -> None:
    """Kill all children but others, which a program that uses the library may have.

    For those that have nothing to clean up; one that is new may lose other signals. It would wait
    for work, and Python's end for it.
    """
    for child in set(active_children()) - set(others):
        child.kill()
        child.join()

"""What text is made for: a screen of some columns, or whoever reads all of it.

The command line decides it, once for each command (`cli.screens`); everywhere else text is plain
and complete: in pipes, in the library, in notebooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Screen:
    """Where text goes: `columns` to fold tables to, None for as wide as they are."""

    columns: int | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether people look at it, for whom layers that are alike are one line."""
        return self.columns is not None


_ALL_OF_IT = Screen()
_CURRENT: ContextVar[Screen] = ContextVar("screen", default=_ALL_OF_IT)


def screen() -> Screen:
    """Return the screen that text is made for now."""
    return _CURRENT.get()


@contextmanager
def on(wanted: Screen) -> Iterator[None]:
    """Make text for a screen inside of a block."""
    token = _CURRENT.set(wanted)
    try:
        yield
    finally:
        _CURRENT.reset(token)

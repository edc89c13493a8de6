"""The one place that decides how wide text is, whether it has colours, and who sees progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import click

from surgeon.base.screen import Screen

Colour = Literal["auto", "always", "never"]
_USUAL_COLUMNS = 80
# What less is read of takes no time that anybody would watch.
_LONG_BYTES = 100_000_000
_COLOURS = {"+": "green", "~": "yellow", "-": "red"}


def of_stdout() -> Screen:
    """Return the terminal that answers go to, or what is for a pipe or a file."""
    if not sys.stdout.isatty():
        return Screen()
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdecimal() and int(given):
        return Screen(int(given))
    try:
        return Screen(os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL_COLUMNS)
    except (OSError, ValueError):  # one that does not know its size
        return Screen(_USUAL_COLUMNS)


def is_coloured(wanted: Colour) -> bool:
    """Say whether answers have colours: by https://no-color.org, unless an option says."""
    if wanted != "auto":
        return wanted == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def coloured(text: str) -> str:
    """Give every line that begins with a sign that sign's colour."""
    return "\n".join(
        click.style(line, fg=_COLOURS[line[0]]) if line[:1] in _COLOURS else line
        for line in text.splitlines()
    )


@contextmanager
def progress(
    total_bytes: int, *, label: str, silent: bool = False
) -> Iterator[Callable[[int], None] | None]:
    """Give what shows progress on a terminal, None where nobody would see it."""
    if silent or os.environ.get("CI") or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=total_bytes, label=label, file=sys.stderr) as bar:
        yield bar.update


@contextmanager
def reading(total_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """Give what shows how much is read, where that takes long enough to watch."""
    with progress(total_bytes, label="reading", silent=total_bytes < _LONG_BYTES) as update:
        yield update

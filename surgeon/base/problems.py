"""A line `WHERE: WHAT, with the values; HINT` taken apart, for programs that read it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NamedTuple

# Places in a recipe, on a command line, in a training section.
_PLACE = re.compile(
    r"(steps|vars|models|training|output|seed|surgeon|about|\$schema)(\[\d+\]|\.[\w$-]+)*( \(.*\))?"
    r"|--?[A-Za-z][\w-]*( \S+)?|(stage|group) '.*'|(teacher|layer_decay|unfreeze)(\.\w+)*"
)
_FILE = re.compile(r"[^\s'\"]+\.[A-Za-z]\w*(#\S+)?")


class Located(NamedTuple):
    """What is wrong, in which file, at which place of it, and what would settle it."""

    file: str | None
    place: str | None
    message: str
    hint: str | None

    @property
    def text(self) -> str:
        """The line as people read it."""
        line = ": ".join(part for part in (self.file, self.place, self.message) if part is not None)
        return line if self.hint is None else f"{line}; {self.hint}"


def located(problem: str, given: Collection[str] = ()) -> Located:
    """Take a problem apart; `given` are words of the command line, among which files are.

    Put together again, it is what it was.
    """
    rest, file, places = problem, None, list[str]()
    while (parts := rest.partition(": "))[1]:
        if _PLACE.fullmatch(parts[0]):
            places.append(parts[0])
        elif file is None and not places and _is_file(parts[0], given):
            file = parts[0]
        else:
            break
        rest = parts[2]
    message, _, hint = rest.partition("; ")
    return Located(file, ": ".join(places) or None, message, hint or None)


def _is_file(word: str, given: Collection[str]) -> bool:
    path = word.partition("#")[0]
    if "://" in path:
        return True
    return bool(word in given or _FILE.fullmatch(word) or os.path.lexists(path))

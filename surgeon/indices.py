"""Choosing entries of a dimension by index and range: 3, "3", "0:5", [1, 2, "7:9"]."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from surgeon.errors import PlanError, UsageError

Indices = int | str | list[int | str]
# What the schema of a parameter says of them besides their types.
SCHEMA: dict[str, Any] = {"minimum": 0, "minItems": 1, "format": "indices"}
Ranges = tuple[tuple[int, int], ...]

_RANGE = re.compile(r"(?P<start>\d*):(?P<stop>\d*)")


def check(text: str) -> None:
    """Raise UsageError where a text is neither an index nor a range."""
    if not (text.isdecimal() or _RANGE.fullmatch(text)):
        raise UsageError(f"'{text}' is neither an index, such as 3, nor a range, such as 0:5")


def chosen(given: int | str | Sequence[int | str], size: int) -> list[int]:
    """Return the indices that are given, of `size` entries; raises PlanError for what is none."""
    problems: list[str] = []
    found: dict[int, None] = {}
    for item in [given] if isinstance(given, int | str) else given:
        start, stop = _bounds(item, size)
        if not 0 <= start < stop <= size:
            problems.append(f"{item} is not among the entries, which are 0 to {size - 1}")
            continue
        twice = [index for index in range(start, stop) if index in found]
        problems += [f"{index} is given twice" for index in twice[:1]]
        found |= dict.fromkeys(range(start, stop))
    if problems:
        raise PlanError(*problems)
    return list(found)


def _bounds(item: int | str, size: int) -> tuple[int, int]:
    if isinstance(item, str):
        check(item)
        if ends := _RANGE.fullmatch(item):
            return int(ends["start"] or 0), int(ends["stop"] or size)
    return int(item), int(item) + 1


def runs(indices: Iterable[int], block: int = 1) -> Ranges:
    """Return the ranges of entries that indices mean, `block` entries for each, in their order."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index * block:
            found[-1] = (found[-1][0], (index + 1) * block)
        else:
            found.append((index * block, (index + 1) * block))
    return tuple(found)

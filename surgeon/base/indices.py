"""Choosing entries by index and range: 3, "3", "0:5", "::2", -1, [1, 2, "7:9"]."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from surgeon.base.errors import PlanError, UsageError

Indices = int | str | list[int | str]
# What the schema of a parameter says of them besides their types.
SCHEMA: dict[str, Any] = {"minItems": 1, "format": "indices"}
Ranges = tuple[tuple[int, int], ...]

_RANGE = re.compile(r"\s*(-?\d{1,9})?\s*(?P<many>:\s*(-?\d{1,9})?\s*(?::\s*(\d{1,9})?\s*)?)?")


def parsed(given: str | int) -> slice:
    """Return what `0:8`, `:-1`, `::2` or `3` selects; raises UsageError for anything else."""
    found = _RANGE.fullmatch(str(given))
    if not found or not str(given).strip():
        raise UsageError(f"'{given}' is not an index like 3, or a range like 0:8, :-1 or ::2")
    first, last, step = (int(found[group]) if found[group] else None for group in (1, 3, 4))
    if step == 0:
        raise UsageError(f"'{given}' has a step of 0")
    if found["many"] is None and first is not None:
        return slice(first, first + 1 or None)
    return slice(first, last, step)


def within(given: str | int, size: int) -> range | None:
    """Return what an index or a range selects of `size` entries, None where it reaches outside."""
    wanted = parsed(given)
    ends = (
        end + size if end < 0 else end for end in (wanted.start, wanted.stop) if end is not None
    )
    return range(*wanted.indices(size)) if all(0 <= end <= size for end in ends) else None


def chosen(given: int | str | Sequence[int | str], size: int) -> list[int]:
    """Return the indices that are given, of `size` entries; raises PlanError for what is none."""
    problems: list[str] = []
    found: dict[int, None] = {}
    for item in [given] if isinstance(given, int | str) else given:
        wanted = within(item, size)
        if not wanted:
            problems.append(f"{item} is not among the entries, which are 0 to {size - 1}")
            continue
        twice = [index for index in wanted if index in found]
        problems += [f"{index} is given twice" for index in twice[:1]]
        found |= dict.fromkeys(wanted)
    if problems:
        raise PlanError(*problems)
    return list(found)


def runs(indices: Iterable[int], block: int = 1) -> Ranges:
    """Return the ranges of entries that indices mean, `block` entries for each, in their order."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index * block:
            found[-1] = (found[-1][0], (index + 1) * block)
        else:
            found.append((index * block, (index + 1) * block))
    return tuple(found)

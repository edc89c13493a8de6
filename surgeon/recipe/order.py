"""Whether a step that finds nothing comes too early or too late."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from surgeon.base import patterns
from surgeon.base.errors import SurgeonError
from surgeon.recipe.recipe import Step

_NOTHING = re.compile(r"(?P<said>no tensor matches '(?P<pattern>[^']+)').*")
# Where steps say what they make.
_MAKES = ("to", "into")


def explained(
    error: SurgeonError, steps: Sequence[Step], gone: Sequence[Collection[str]]
) -> SurgeonError:
    """Return an error with a hint where what it misses is gone by now, or is made later.

    `gone` are the names that each step before it took away.
    """
    return type(error)(*(_explained(problem, steps, gone) for problem in error.problems))


def _explained(problem: str, steps: Sequence[Step], gone: Sequence[Collection[str]]) -> str:
    if not (found := _NOTHING.fullmatch(problem)):
        return problem
    said, pattern = found["said"], found["pattern"]
    for step, names in zip(steps, gone, strict=False):
        if any(patterns.match(pattern, name) is not None for name in names):
            return f"{said}; {step.place} has renamed or removed it before"
    for step in steps[len(gone) + 1 :]:
        made = [name for key in _MAKES for name in _words(step.parameters.get(key))]
        if any(name == pattern or pattern.startswith(f"{name}.") for name in made):
            return f"{said}; {step.place} makes it, and comes later"
    return problem


def _words(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item

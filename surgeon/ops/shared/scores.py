"""Scores that a training run wrote down, by which steps choose what to keep.

JSON files: planning reads no tensor data, and what is kept is part of the plan.
`surgeon.training.collect_routing` and `collect_importance` write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

from surgeon.base.errors import Hints, PlanError
from surgeon.draft import Draft

Value = TypeVar("Value")

# {what wrote it: by which function}
_WRITERS = {"routing": "collect_routing", "importance": "collect_importance"}


def read_scores(draft: Draft, location: str, kind: str) -> Mapping[str, Any]:
    """Return what a file of one kind holds; raises PlanError for another file."""
    found = draft.outside.read_json(location)
    said = found.get("surgeon") if isinstance(found, dict) else None
    if said != kind:
        was = f"it holds {said}" if said in _WRITERS else "it does not say that it holds that"
        raise PlanError(
            f"{location}: no file of {kind} scores: {was}; surgeon.training.{_WRITERS[kind]} "
            "writes one"
        )
    return dict(found)


def section(found: Mapping[str, Any], word: str, location: str) -> Mapping[str, Any]:
    """Return an object of a file; raises PlanError where there is none."""
    inside = found.get(word)
    if not isinstance(inside, dict):
        raise PlanError(f"{location}: there is no '{word}' in it")
    return inside


def named(found: Mapping[str, Value], name: str) -> Value | None:
    """Return what is said of a module, whose name may have a prefix on either side."""
    if name in found:
        return found[name]
    near = [value for other, value in found.items()
            if name.endswith(f".{other}") or other.endswith(f".{name}")]  # fmt: skip
    return near[0] if len(near) == 1 else None


def require_named(found: Mapping[str, Value], name: str, location: str) -> Value:
    """Return what is said of a module; raises PlanError where nothing is, or too much."""
    value = named(found, name)
    if value is None:
        raise PlanError(f"{location}: says nothing of '{name}'{Hints(found)(name)}")
    return value


def numbers(values: Any, count: int, where: str) -> list[float]:
    """Return a list of finite numbers, of a given length; raises PlanError."""
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        for value in values
    ):
        raise PlanError(f"{where}: is no list of finite numbers")
    if len(values) != count:
        raise PlanError(f"{where}: has {len(values)} scores, but there are {count} here")
    return list(map(float, values))


def best(scores: Sequence[float], keep: int, *, parts: int = 1) -> list[int]:
    """Return the indices of the highest scores in their order, as many of each part.

    Equal scores: the first. Parts are consecutive and of one size.
    """
    size = len(scores) // parts
    found: list[int] = []
    for start in range(0, len(scores), size):
        ranked = sorted(range(start, start + size), key=lambda index: (-scores[index], index))
        found += ranked[: keep // parts]
    return sorted(found)

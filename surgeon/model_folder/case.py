"""A config while rules are applied to it, and how rules find the tensors that they are about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgeon.base import patterns
from surgeon.draft import Tensors
from surgeon.model_folder.families import Family

Json = dict[str, Any]

_PLACE = re.compile(r"(.+)\[(\d)\]")
_MOST_NAMED = 3


@dataclass
class Case:
    """A config before and after, with the tensors before and after.

    `stated` is what the recipe says in output.config, already in `new`. `explained` are the
    dimensions of tensors whose meaning some rule knows.
    """

    old: Json
    stated: Json
    new: Json
    before: Tensors
    after: Tensors
    family: Family
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    explained: set[tuple[str, int]] = field(default_factory=set)

    def contradiction(self, problem: str) -> None:
        """Report a mistake; of an architecture without rules of its own, only a suspicion."""
        (self.problems if self.family.types else self.notes).append(problem)

    def follow(self, key: str, value: Any) -> None:
        """Give a key its new value, unless the recipe states one."""
        if key not in self.stated:
            self.new[key] = value


def matching(pattern: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the names that end as a pattern says."""
    known: dict[str, bool] = {}
    for name in names:
        # The layers of a model are alike: one of them is looked at.
        alike = ".".join("0" if part.isdigit() else part for part in name.split("."))
        if alike not in known:
            known[alike] = patterns.match(f"**.{pattern}", alike) is not None
        if known[alike]:
            yield name


def sized(place: str, tensors: Tensors) -> Iterator[tuple[str, int, int]]:
    """Yield (name, dimension, size) of the tensors at a place such as `lm_head.weight[0]`."""
    found = _PLACE.fullmatch(place)
    assert found is not None
    dim = int(found[2])
    for name in matching(found[1], tensors):
        if dim < len(shape := tensors[name].spec.shape):
            yield name, dim, shape[dim]


def numbered(segment: str, names: Iterable[str]) -> dict[str, set[int]]:
    """Return {container: the numbers in it} for the containers of this name."""
    found: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[:-2]):
            if part == segment and parts[place + 1].isdigit():
                container = ".".join(parts[: place + 1])
                found.setdefault(container, set()).add(int(parts[place + 1]))
    return found


def listed(names: Sequence[str]) -> str:
    """Return `'a', 'b', 'c' and 2 more`."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + more

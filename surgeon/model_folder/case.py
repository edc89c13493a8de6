"""A config while rules are applied to it, and how rules find the tensors that they are about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from surgeon.base import patterns
from surgeon.draft import Tensors
from surgeon.model_folder import expressions
from surgeon.model_folder.architectures import Architecture
from surgeon.tokens.moves import TokenMoves

Json = dict[str, Any]

_PLACE = re.compile(r"(.+)\[(\d)\]")
# What a pattern begins with, where that stands for itself, as do words in parentheses.
_BEGINNING = re.compile(r"\([\w.]+(?:\|[\w.]+)*\)|[\w.]+(?![\w.*|])")
LABELS = "num_labels"
# Where a config names neither labels nor their number, transformers takes this for granted.
_DEFAULT_LABELS = 2
# A default that follows from others, which follow from others.
_DEEPEST = 3


@dataclass
class Case:
    """A config before and after, with the tensors before and after.

    `stated` is what the recipe says in output.config, already in `new`. `architecture` is what is
    known of the model type, if anything. `explained` are the dimensions of tensors whose meaning
    some rule knows. `tokens` says where tokens have gone, where the tokenizer follows.
    """

    old: Json
    stated: Json
    new: Json
    before: Tensors
    after: Tensors
    architecture: Architecture | None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    explained: set[tuple[str, int]] = field(default_factory=set)
    tokens: TokenMoves | None = None

    def contradiction(self, problem: str) -> None:
        """Report what would make the config contradict the tensors."""
        self.problems.append(problem)

    def follow(self, path: str, value: Any) -> None:
        """Give a number its new value, unless the recipe states one."""
        if not self.states(path):
            for place in self.places_of(path):
                put(self.new, place, value)

    def states(self, path: str) -> bool:
        """Return whether the recipe states a number of the config."""
        return any(has(self.stated, place) for place in self.names_of(path))

    def names_of(self, path: str) -> list[str]:
        """Return a number's name, and the other names that the config class has for it."""
        others = self.architecture.aliases.get(path, ()) if self.architecture else ()
        return [path, *others]

    def places_of(self, path: str) -> list[str]:
        """Return where the config states a number; its own name where it does not."""
        return [place for place in self.names_of(path) if has(self.new, place)] or [path]

    def look_up(self, config: Json, path: str) -> Any:
        """Return what a config states at a path, under any of its names; None without."""
        for place in self.names_of(path):
            if (found := get(config, place)) is not None:
                return found
        return None

    def value(self, config: Json, path: str, depth: int = 0) -> Fraction | None:
        """Return a number of a config, or what it is by default; None where it has none."""
        if path == LABELS:
            return Fraction(labels_of(config))
        found = self.look_up(config, path)
        if found is not None:
            return Fraction(found) if type(found) is int and found >= 0 else None
        defaults = self.architecture.defaults.get(path) if self.architecture else None
        if defaults is None or depth > _DEEPEST:
            return None
        # The second is what null stands for, where that is something else than nothing.
        is_null = any(has(config, place) for place in self.names_of(path))
        text = defaults[-1] if is_null else defaults[0]
        if text is None:
            return None
        return expressions.value(text, lambda other: self.value(config, other, depth + 1))


def labels_of(config: Json) -> int:
    """Return how many labels a config has."""
    named, count = config.get("id2label"), config.get(LABELS, _DEFAULT_LABELS)
    return len(named) if isinstance(named, dict) else count if type(count) is int else 0


def get(config: Any, path: str) -> Any:
    """Return what is at a path of a config; None where there is nothing."""
    for part in path.split("."):
        if isinstance(config, list):
            config = config[int(part)] if part.isdigit() and int(part) < len(config) else None
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config


def has(config: Json, path: str) -> bool:
    """Return whether a config has an entry at a path, be it null."""
    outer, _, last = path.rpartition(".")
    inside = get(config, outer) if outer else config
    if isinstance(inside, list):
        return last.isdigit() and int(last) < len(inside)
    return isinstance(inside, dict) and last in inside


def put(config: Json, path: str, value: Any) -> None:
    """Put a value at a path of a config, in place."""
    outer, _, last = path.rpartition(".")
    inside: Any = config
    for part in outer.split(".") if outer else ():
        inside = inside[int(part)] if isinstance(inside, list) else inside.setdefault(part, {})
    if isinstance(inside, list):
        inside[int(last)] = value
    else:
        inside[last] = value


def matching(pattern: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the names that end as a pattern says."""
    known: dict[str, bool] = {}
    for name in _promising(pattern, names):
        # The layers of a model are alike: one of them is looked at.
        alike = ".".join("0" if part.isdigit() else part for part in name.split("."))
        if alike not in known:
            known[alike] = patterns.match(f"**.{pattern}", alike) is not None
        if known[alike]:
            yield name


def _promising(pattern: str, names: Iterable[str]) -> Iterable[str]:
    """Return the names that a pattern may match, of very many most likely a few."""
    first = _BEGINNING.match(pattern)
    words = first[0].strip("()").split("|") if first else []
    # A number would not do: what is looked at has another in its place.
    if not all(any(map(str.isalpha, word)) for word in words) or not words:
        return names
    listed = list(names)
    text = "\n".join(listed)
    for word in [word for word in words if word not in text]:
        words.remove(word)
    return [name for name in listed if any(word in name for word in words)] if words else []


def sized(place: str, tensors: Tensors) -> Iterator[tuple[str, int, int]]:
    """Yield (name, dimension, size) of the tensors at a place such as `lm_head.weight[0]`."""
    found = _PLACE.fullmatch(place)
    assert found is not None
    dim = int(found[2])
    for name in matching(found[1], tensors):
        if dim < len(shape := tensors[name].spec.shape):
            yield name, dim, shape[dim]


def containers(names: Iterable[str]) -> dict[str, set[int]]:
    """Return {container: the numbers in it} of all numbered modules."""
    found: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[1:-1], 1):
            if part.isdigit():
                found.setdefault(".".join(parts[:place]), set()).add(int(part))
    return found

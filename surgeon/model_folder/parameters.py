"""The order of an architecture's parameters, and which of them transformers' Trainer decays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.model_folder.architectures import record_of
from surgeon.model_folder.ties import tied_names

Json = dict[str, Any]
_ANY = "{}"


@dataclass(frozen=True)
class ParameterOrder:
    """The names of a model's parameters in its order, and which of them are not decayed."""

    class_name: str
    names: tuple[str, ...]
    undecayed: frozenset[str]

    @property
    def groups(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Trainer's two groups: what is decayed, then what is not, each in the model's order."""
        decayed = tuple(name for name in self.names if name not in self.undecayed)
        return decayed, tuple(name for name in self.names if name in self.undecayed)


def parameter_order(config: Json, names: Iterable[str]) -> ParameterOrder | None:
    """Return the order of the parameters of the class that a config names.

    None where that is not known for certain: the class or one of the names is not known, a
    parameter of the class is missing, layers differ, or transformers keeps several of the names as
    one parameter.
    """
    stated = config.get("architectures")
    class_name = str(stated[0]) if isinstance(stated, list) and stated else ""
    record = record_of(str(config.get("model_type")))
    known = record["classes"].get(class_name) if record else None
    if not record or not known or not known.get("order") or known.get("names") == "memory":
        return None
    names = list(names)
    # A class that ties nothing by default does so where the config says it.
    ties = known.get("ties") or tied_names(config, names)
    one = _Class(record["rows"], known, ties)
    placed: dict[str, str] = {}
    undecayed: set[str] = set()
    for name in names:
        flags = one.flags(name)
        in_memory = one.in_memory(name)
        if in_memory is not None and len(flags) == 1:
            placed[in_memory] = name
            undecayed |= {name} if "n" in flags else set()
        elif flags != {"b"}:
            return None
    if not one.is_complete(placed.values()) or not _is_uniform(placed):
        return None
    there = set(map(_normal, placed.values()))
    keys = {name: one.place(in_memory, name, there) for in_memory, name in placed.items()}
    order = sorted(keys, key=lambda name: keys[name])
    return ParameterOrder(class_name, tuple(order), frozenset(undecayed))


class _Class:
    """What is known of the parameters of a class; patterns have {} for each number."""

    def __init__(self, rows: Sequence[Sequence[Any]], known: Json, ties: Mapping[str, str]) -> None:
        self._rows: dict[str, list[Sequence[Any]]] = {}
        for start, stop in known["rows"]:
            for row in rows[start:stop]:
                self._rows.setdefault(_normal(row[0]), []).append(row)
        self._in_memory: dict[str, set[str]] = {}
        self._on_disk: dict[str, set[str]] = {}
        for entry in known["order"]:
            first, *disk = [entry] if isinstance(entry, str) else entry
            for pattern in disk or [first]:
                self._in_memory.setdefault(_normal(pattern), set()).add(_normal(first))
                self._on_disk.setdefault(_normal(first), set()).add(_normal(pattern))
        self._rank = _ranks(self._on_disk)
        self._ties = {_normal(a): _normal(b) for a, b in ties.items()}

    def flags(self, name: str) -> set[str]:
        """Return what rows say that may be of a tensor: `b` for buffers, `n` for no decay."""
        return {row[1] for row in self._rows.get(_normal(name), ()) if _is_of(row[0], name)}

    def in_memory(self, name: str) -> str | None:
        """Return the name of the parameter that is this tensor and no other, if one is."""
        pattern = _normal(name)
        found = self._in_memory.get(pattern, set())
        if len(found) != 1:
            return None
        (first,) = found
        is_alone = self._on_disk[first] == {pattern} and first.count(_ANY) == pattern.count(_ANY)
        return _filled(first, name) if is_alone else None

    def is_complete(self, names: Iterable[str]) -> bool:
        """Say whether each parameter of the class is there, but for those that may be tied."""
        return self._in_memory.keys() <= {_normal(name) for name in names} | self._ties.keys()

    def place(self, in_memory: str, name: str, there: Collection[str]) -> list[int]:
        """Return what a parameter is sorted by, where these patterns are there.

        Of tied ones the first in the model counts, whichever of them is on disk.
        """
        pattern = _normal(name)
        others = {
            _filled(first, name)
            for alias, owner in self._ties.items()
            if owner == pattern and alias not in there
            for first in self._in_memory.get(alias, ())
            if first.count(_ANY) == pattern.count(_ANY)
        }
        return min(_key(other, self._rank) for other in (in_memory, *others))


def _is_of(pattern: str, name: str) -> bool:
    """Say whether a name has the numbers that a row states of it."""
    pairs = zip(pattern.split("."), name.split("."), strict=True)
    return all(stated == part or stated.startswith("{") for stated, part in pairs)


def _normal(name: str) -> str:
    return ".".join(
        _ANY if part.isdigit() or part.startswith("{") else part for part in name.split(".")
    )


def _filled(pattern: str, name: str) -> str:
    """Return a pattern with the numbers of a name."""
    numbers = (part for part in name.split(".") if part.isdigit())
    return ".".join(next(numbers) if part == _ANY else part for part in pattern.split("."))


def _is_uniform(names: Iterable[str]) -> bool:
    """Say whether what is numbered has the same parameters under each of its numbers.

    Else the order of those of one layer says nothing of another's.
    """
    held: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdigit():
                inside = held.setdefault(tuple(parts[:place]), {})
                inside.setdefault(part, set()).add(_normal(".".join(parts[place + 1 :])))
    return all(len({frozenset(own) for own in inside.values()}) == 1 for inside in held.values())


def _ranks(patterns: Iterable[str]) -> Mapping[tuple[str, ...], int]:
    """Return at which place each module or parameter is first met."""
    rank: dict[tuple[str, ...], int] = {}
    for number, pattern in enumerate(patterns):
        parts = tuple(pattern.split("."))
        for end in range(1, len(parts) + 1):
            rank.setdefault(parts[:end], number)
    return rank


def _key(name: str, rank: Mapping[tuple[str, ...], int]) -> list[int]:
    """Return where a parameter comes: a module's follow one another, numbered ones by number."""
    key = []
    path: tuple[str, ...] = ()
    for part in name.split("."):
        path = (*path, _ANY if part.isdigit() else part)
        key.append(int(part) if part.isdigit() else rank[path])
    return key

"""What is known of transformers' architectures, read one model type at a time.

The data file is made by `make architectures`: a line of JSON that says where each record is, then
the records, each compressed by itself. docs/model-folders.md says what is in a record.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from surgeon.model_folder.fused_experts import fused_rows

Json = dict[str, Any]
Dims = tuple[str, ...]

DATA = Path(__file__).with_name("architectures.bin")
_ANY = "{}"


@dataclass(frozen=True)
class Row:
    """Tensors of one name but for the numbers in it, and what their sizes may be."""

    parts: tuple[str, ...]
    kinds: tuple[Dims, ...]
    is_buffer: bool

    def matches(self, parts: Sequence[str]) -> bool:
        """Return whether a name of as many parts is one of these tensors' names."""
        return all(a == b for a, b in zip(self.parts, parts, strict=True) if not a.startswith("{"))


@dataclass(frozen=True)
class Architecture:
    """What is known of a model type, for the class that a folder names.

    `rows` are found by their names with `{}` for every number. `counts` are patterns of numbered
    containers, with their lengths; `ties` are patterns of tensors that may be one. `settings` are
    what rules of positions go by where the config says nothing. `own` are the names that the class
    of the folder has, where that is known. Tensors whose names have one of
    `float32` in them are computed in float32 whatever the rest is, those of `float32_of_float16`
    where the rest is float16. `fused` says how heads lie in projections that hold queries, keys and
    values, by their names with `{}` for every number. `stands_for` says which tensors one that
    holds all experts is in the place of, by such names too.
    """

    rows: Mapping[str, tuple[Row, ...]]
    prefix: tuple[str, str]
    counts: Mapping[str, str]
    lists: Mapping[str, Json]
    kinds: tuple[Json, ...]
    heads: Mapping[str, str]
    defaults: Mapping[str, list[str | None]]
    aliases: Mapping[str, tuple[str, ...]]
    ties: Mapping[str, str]
    settings: Mapping[str, Any]
    float32: tuple[str, ...]
    own: frozenset[str] = frozenset()
    float32_of_float16: tuple[str, ...] = ()
    fused: Mapping[str, Json] = field(default_factory=dict)
    stands_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def rows_of(self, name: str) -> Iterator[Row]:
        """Yield the rows that a tensor may be of."""
        parts = self.inside(name).split(".")
        for row in self.rows.get(_normal(parts), ()):
            if row.matches(parts):
                yield row

    def is_uniform(self, name: str) -> bool:
        """Return whether what a tensor is does not depend on the numbers in its name."""
        return all(
            not any("{i}" in text for kind in row.kinds for text in kind)
            and not any(part.isdigit() for part in row.parts)
            for row in self.rows_of(name)
        )

    def pattern(self, name: str) -> str:
        """Return a name as the class would name it, with `{}` for every number."""
        return _normal(self.inside(name).split("."))

    def inside(self, name: str) -> str:
        """Return a tensor's name as the class would name it, which may have another prefix."""
        removed, added = self.prefix
        return added + name.removeprefix(removed)


@lru_cache
def record_of(model_type: str) -> Json | None:
    """Return what is known of a model type; None where nothing is."""
    with DATA.open("rb") as file:
        head = file.readline()
        place = json.loads(head)["types"].get(model_type)
        if place is None:
            return None
        offset, length = place
        file.seek(len(head) + offset)
        record: Json = json.loads(zlib.decompress(file.read(length)))
    return record


def architecture_of(config: Json, names: Iterable[str]) -> Architecture | None:
    """Return what is known of the model that a config and its tensors' names are of."""
    record = record_of(str(config.get("model_type")))
    if record is None:
        return None
    stated = config.get("architectures")
    wanted = str(stated[0]) if isinstance(stated, list) and stated else ""
    classes: Json = record["classes"]
    chosen = [classes[wanted]] if wanted in classes else []
    order = [*chosen, *(one for name, one in classes.items() if name != wanted)]
    indices = list(dict.fromkeys(i for one in order for i in _indices(one["rows"])))
    indices += record.get("further", [])
    aliases: dict[str, tuple[str, ...]] = {}
    for other, name in record.get("aliases", {}).items():
        aliases[name] = (*aliases.get(name, ()), other)
    apart = [record["rows"][index] for index in indices]
    bases = [one["base"] for one in order if one.get("base")]
    own = [record["rows"][i][0] for one in chosen for i in _indices(one["rows"])]
    apart += _of_other_bases([record["rows"][i] for i in record.get("further", [])], bases, own)
    fused = list(fused_rows({tuple(name.split(".")): kinds for name, _, *kinds in apart},
                            record.get("counts", {})))  # fmt: skip
    rows = _by_name([*apart, *([".".join(row.parts), "", *row.kinds] for row in fused)])
    return Architecture(
        rows=rows,
        prefix=_prefix(rows, names, bases, own),
        counts=record.get("counts", {}),
        lists=record.get("lists", {}),
        kinds=tuple(record.get("kinds", ())),
        heads=record.get("heads", {}),
        defaults=record.get("defaults", {}),
        aliases=aliases,
        ties={new: old for one in (chosen or order) for new, old in one.get("ties", {}).items()},
        settings=record.get("settings", {}),
        float32=tuple(dict.fromkeys(p for one in chosen or order for p in one.get("float32", ()))),
        float32_of_float16=tuple(
            dict.fromkeys(p for one in chosen or order for p in one.get("float32_of_float16", ()))
        ),
        own=frozenset(own),
        fused={
            _normal(parts): one
            for name, one in record.get("fused", {}).items()
            # As the base model alone names them too.
            for parts in (name.split("."), name.split(".")[1:])
        },
        stands_for={_normal(row.parts): tuple(map(_normal, row.stands_for)) for row in fused},
    )


def _normal(parts: Iterable[str]) -> str:
    return ".".join(_ANY if part.isdigit() or part.startswith("{") else part for part in parts)


def _indices(ranges: Iterable[Sequence[int]]) -> Iterator[int]:
    for start, stop in ranges:
        yield from range(start, stop)


def _by_name(rows: Iterable[Sequence[Any]]) -> dict[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for pattern, flags, *kinds in rows:
        parts = tuple(pattern.split("."))
        normal = _normal(parts)
        row = Row(parts, tuple(map(tuple, kinds)), "b" in flags)
        found.setdefault(normal, []).append(row)
    return {normal: tuple(some) for normal, some in found.items()}


def _of_other_bases(
    rows: Iterable[Sequence[Any]], bases: Sequence[str], own: Iterable[str]
) -> list[Sequence[Any]]:
    """Return rows that were found in one class as those name them that call the base otherwise.

    `own` are names of the class of the folder, which may have the base's parts for itself.
    """
    outermost = {name.partition(".")[0] for name in own}
    found: list[Sequence[Any]] = []
    for name, *rest in rows:
        base, _, inside = name.partition(".")
        others = [other for other in dict.fromkeys(bases) if other != base and base in bases]
        found += [[f"{other}.{inside}", *rest] for other in others]
        if base in bases and base not in outermost and inside.partition(".")[0] in outermost:
            found.append([inside, *rest])
    return found


def _prefix(
    rows: Mapping[str, object], names: Iterable[str], bases: Iterable[str], own: Iterable[str]
) -> tuple[str, str]:
    """Return what to remove from names and what to add, so that most of them are known.

    transformers loads a base model into a class with a head, and the other way round. Names of the
    class of the folder count before those of others.
    """
    of_class = {_normal(name.split(".")) for name in own}
    normal = {_normal(name.split(".")) for name in names}
    ways = [("", "")]
    for base in dict.fromkeys(bases):
        ways += [("", f"{base}."), (f"{base}.", "")]

    def known(way: tuple[str, str]) -> tuple[int, int]:
        removed, added = way
        named = [added + name.removeprefix(removed) for name in normal]
        return sum(name in of_class for name in named), sum(name in rows for name in named)

    return max(ways, key=known)

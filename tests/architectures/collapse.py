"""Tensors of all layers as one row, `model.layers.{i}.mlp.up_proj.weight`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# What is said of one tensor: an expression for each dimension, and flags.
Said = tuple[tuple[str, ...], str]
Kinds = tuple[tuple[str, ...], ...]
Row = list[object]

_LETTERS = "ijkmnp"
# With more kinds of the same tensor than this, each is a row of its own.
_MOST_KINDS = 8
_ANY = "{}"


def collapse(said: Mapping[str, Said], growing: Collection[str]) -> list[Row]:
    """Return rows [pattern, flags, dimensions of one kind, of another kind...], in order.

    `growing` are containers whose length is a number of the config; of others, modules are put
    together only where they are alike.
    """
    rows: dict[tuple[str, ...], tuple[str, Kinds]] = {
        tuple(name.split(".")): (flags, (dims,)) for name, (dims, flags) in said.items()
    }
    patterns = {pattern_of(container) for container in growing}
    for place in range(max(map(len, rows), default=0) - 1, -1, -1):
        groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for parts in rows:
            is_numbered = place < len(parts) and parts[place].isdigit()
            pattern = (*parts[:place], _ANY, *parts[place + 1 :]) if is_numbered else parts
            groups.setdefault(pattern, []).append(parts)
        made: dict[tuple[str, ...], tuple[str, Kinds]] = {}
        for pattern, members in groups.items():
            flags = {rows[parts][0] for parts in members}
            kinds = tuple(dict.fromkeys(kind for parts in members for kind in rows[parts][1]))
            grows = pattern_of(".".join(pattern[:place])) in patterns
            enough = len(members) > 1 and len(kinds) * 2 <= len(members)
            if len(flags) == 1 and len(kinds) <= _MOST_KINDS and (grows or enough):
                made[pattern] = (flags.pop(), kinds)
            else:
                made |= {parts: rows[parts] for parts in members}
        rows = made
    return [[_lettered(parts), flags, *map(list, kinds)] for parts, (flags, kinds) in rows.items()]


def _lettered(parts: tuple[str, ...]) -> str:
    letters = iter(_LETTERS)
    return ".".join("{" + next(letters) + "}" if part == _ANY else part for part in parts)


def pattern_of(name: str) -> str:
    """Return a name with a capture for each number."""
    return _lettered(tuple(_ANY if part.isdigit() else part for part in name.split(".")))


def container_lengths(lengths: Mapping[str, str]) -> dict[str, str]:
    """Return {pattern of a container: its length} where all of one pattern have one length."""
    found: dict[str, set[str]] = {}
    for container, length in lengths.items():
        found.setdefault(pattern_of(container), set()).add(length)
    alike = {pattern: some.pop() for pattern, some in found.items() if len(some) == 1}
    single = {name: length for name, length in lengths.items() if pattern_of(name) not in alike}
    return alike | single

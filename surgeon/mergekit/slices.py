"""Slices that are merged: which layers of each operand lie where in the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from surgeon.base.errors import UsageError
from surgeon.mergekit.methods import Json, Method
from surgeon.mergekit.values import Names


@dataclass(frozen=True)
class Source:
    """A model of the configuration with its own parameters, and in a slice its layers."""

    path: str
    parameters: Json
    layers: range | None = None


# The state, the other models, and whether the merge is relative to the state.
Operands = tuple[Source, list[Source], bool]


@dataclass(frozen=True)
class Stacked:
    """How the operands of slices become whole models whose layers stand as the result's do.

    `ranges` are the slices' layers in the result. Operands go by their place in a slice, from 1;
    `called` names those that have to be arranged, `arranged` says of which layers. `own` are the
    state's layers where it is arranged itself. With `shares_end`, what lies behind the layers is
    merged as the last slice is, of the same models.
    """

    state: str
    ranges: tuple[range, ...]
    called: Mapping[int, str] = field(default_factory=dict)
    arranged: Mapping[str, Sequence[Source]] = field(default_factory=dict)
    own: Sequence[Source] | None = None
    shares_end: bool = True
    notes: tuple[str, ...] = ()

    @property
    def is_arranged(self) -> bool:
        return bool(self.arranged) or self.own is not None


def operands_of(method: Method, sources: list[Source], own_base: str | None) -> Operands:
    """Return which sources are the state and the other models; raises UsageError without a base."""
    base = next((s for s in sources if s.path == own_base), None)
    if method.base == "required" and own_base is None:
        raise UsageError("'base_model' is missing")
    if own_base is None or (method.base == "first" and base):
        return sources[0], sources[1:], False
    if base is None and sources[0].layers is not None:  # mergekit adds it to whole models alone
        if method.base != "first":
            raise UsageError("'base_model' must be among the sources of every slice")
        return sources[0], sources[1:], False
    base = base or Source(own_base, {})
    if method.base == "first":  # mergekit merges the base model too, and last
        return sources[0], [*sources[1:], base], False
    return base, [s for s in sources if s.path != base.path], method.base == "optional"


def stacked(slices: Sequence[Operands], names: Mapping[str, Names]) -> Stacked:
    """Return how slices become merges of whole models; `names` are those of the models by path."""
    rows = [[state, *others] for state, others, _ in slices]
    ranges: list[range] = []
    for row in rows:
        first = ranges[-1].stop if ranges else 0
        ranges.append(range(first, first + len(row[0].layers or ())))
    # A slice that has no such operand is not merged with it: any layers do in its place.
    columns = [
        [row[role] if role < len(row) else row[0] for row in rows]
        for role in range(max(map(len, rows)))
    ]
    placed = [_is_in_place(column, ranges, names) for column in columns]
    called = {role: f"arranged-{role}" for role in range(1, len(columns)) if not placed[role]}
    last = rows[-1]
    return Stacked(
        state=rows[0][0].path,
        ranges=tuple(ranges),
        called=called,
        arranged={word: columns[role] for role, word in called.items()},
        own=None if placed[0] else columns[0],
        shares_end=all(columns[role][0].path == last[role].path for role in range(1, len(last))),
        notes=_about_counts(columns, placed, ranges[-1].stop, names),
    )


def _is_in_place(
    column: Sequence[Source], ranges: Sequence[range], names: Mapping[str, Names]
) -> bool:
    """Return whether an operand is one model, all of whose layers stay where they are."""
    is_one = all(source.path == column[0].path for source in column)
    count = names[column[0].path].count
    is_whole = count is None or count == ranges[-1].stop
    return is_one and is_whole and [source.layers for source in column] == list(ranges)


def _about_counts(
    columns: Sequence[Sequence[Source]],
    placed: Sequence[bool],
    layers: int,
    names: Mapping[str, Names],
) -> tuple[str, ...]:
    unseen = [column for column, fits in zip(columns, placed, strict=True)
              if fits and names[column[0].path].count is None]  # fmt: skip
    if not unseen:
        return ()
    return (f"the models are taken to have {layers} layers, all of them merged",)

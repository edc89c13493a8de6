"""From patterns on one side to names on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from surgeon.base import patterns
from surgeon.base.errors import PlanError
from surgeon.base.lists import as_list
from surgeon.draft import Draft, Tensors

# A pattern that forgets a number moves every layer to one place.
_MOST_NAMED = 5


def destinations(
    draft: Draft,
    sources: str | Sequence[str],
    to: str | Sequence[str],
    among: Tensors | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield (name, new name) for what patterns match; raises PlanError for a name moved twice."""
    for name, captures, destination in matches(draft, sources, to, among):
        yield name, patterns.expand(destination, captures)


def matches(
    draft: Draft,
    sources: str | Sequence[str],
    to: str | Sequence[str],
    among: Tensors | None = None,
) -> Iterator[tuple[str, patterns.Captures, str]]:
    """Yield (name, captures, its destination, not yet expanded), as `destinations` does."""
    sources = as_list(sources)
    to = as_list(to)
    if len(sources) != len(to):
        raise PlanError(f"'from' has {len(sources)} entries but 'to' has {len(to)}")
    moved: dict[str, str] = {}
    for source, destination in zip(sources, to, strict=True):
        for name, captures in draft.captured(source, among):
            if name in moved:
                raise PlanError(f"'{name}' matches both '{moved[name]}' and '{source}'")
            moved[name] = source
            yield name, captures, destination


def _and(names: Sequence[str]) -> str:
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return " and ".join([*map(repr, names[:_MOST_NAMED]), *more])


def require_distinct(moves: Iterable[tuple[str, str]]) -> None:
    """Raise PlanError, with a line for each, where two sources have one destination."""
    moves = list(moves)
    if len({destination for _, destination in moves}) == len(moves):
        return
    sources: dict[str, list[str]] = {}
    for source, destination in moves:
        sources.setdefault(destination, []).append(source)
    clashes = [
        f"{_and(names)} would {'both' if len(names) == 2 else 'all'} be '{destination}'"
        for destination, names in sources.items()
        if len(names) > 1
    ]
    if clashes:
        raise PlanError(*clashes)

"""Tensors that a step puts together, or takes apart: who belongs together, under which name.

What a pattern captures and the other side uses, groups the work: one step serves all layers. What
it captures besides is a number, and counts the parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from surgeon.base import patterns
from surgeon.base.errors import PlanError
from surgeon.base.lists import as_list
from surgeon.draft import Draft, Tensors
from surgeon.lazy import LazyTensor, TensorSpec
from surgeon.numeric.dtypes import DTYPES
from surgeon.ops.shared.moves import require_distinct


@dataclass(frozen=True)
class Sources:
    """The tensors that make one, in order."""

    into: str
    names: tuple[str, ...]


@dataclass(frozen=True, order=True)
class _Part:
    """A tensor's place in its group: which pattern matched it, and the numbers it captured."""

    pattern: int
    numbers: tuple[int, ...]
    name: str


def grouped(
    draft: Draft, sources: str | Sequence[str], into: str, expect: int | None
) -> list[Sources]:
    """Return what belongs together; raises PlanError for groups with parts missing."""
    sources = as_list(sources)
    used = patterns.used(into)
    groups: dict[str, list[_Part]] = {}
    matched: dict[str, str] = {}
    problems: list[str] = []
    for position, source in enumerate(sources):
        try:
            found = draft.captured(source)
        except PlanError as error:
            problems += error.problems
            continue
        for name, captures in found:
            if name in matched:
                problems.append(f"'{name}' matches both '{matched[name]}' and '{source}'")
                continue
            matched[name] = source
            own = {key: text for key, text in captures.items()
                   if text is not None and key not in used and key != patterns.UNDER}  # fmt: skip
            for key, text in own.items():
                if not text.isdecimal():
                    problems.append(
                        f"'{name}': {{{key}}} is '{text}', no number to order by; "
                        "list the parts in 'from', in order"
                    )
            numbers = tuple(int(text) for text in own.values() if text.isdecimal())
            destination = patterns.expand(into, captures)
            groups.setdefault(destination, []).append(_Part(position, numbers, name))
    if not problems:
        problems = list(_gaps(groups, sources, expect))
    if problems:
        raise PlanError(*problems)
    return [Sources(into, tuple(part.name for part in sorted(parts)))
            for into, parts in groups.items()]  # fmt: skip


def _gaps(
    groups: Mapping[str, Sequence[_Part]], sources: Sequence[str], expect: int | None
) -> Iterator[str]:
    """Say what groups lack: a pattern, a number between others, as many parts as the rest has."""
    counts = Counter(map(len, groups.values()))
    usual = expect or max(counts, key=lambda count: (counts[count], count), default=0)
    for into, parts in groups.items():
        lacking = [s for n, s in enumerate(sources) if all(part.pattern != n for part in parts)]
        yield from (f"'{into}' lacks a part: no '{source}' for it" for source in lacking)
        ordered = sorted(parts)
        holes = [
            f"'{into}' lacks a part between '{before.name}' and '{after.name}'"
            for before, after in pairwise(ordered)
            if before.pattern == after.pattern
            and len(after.numbers) == 1
            and after.numbers[0] > before.numbers[0] + 1
        ]
        yield from holes
        if len(parts) != usual and not lacking and not holes:
            other = next((name for name, those in groups.items() if len(those) == usual), "")
            wanted = f"expected {usual}" if expect else f"'{other}' has {usual}"
            yield f"'{into}' has {len(parts)} parts, but {wanted}"


def spread(into: str | Sequence[str], captures: patterns.Captures, count: int) -> list[str]:
    """Return the names of a tensor's parts; raises PlanError where they are more or fewer."""
    if not isinstance(into, str):
        if len(into) != count:
            raise PlanError(f"'into' has {len(into)} entries, but there are {count} parts")
        return [patterns.expand(name, captures) for name in into]
    own = [word for word in patterns.used(into) if captures.get(word) is None]
    if len(own) != 1:
        raise PlanError(
            f"'into' is '{into}'; list the parts' names, or number them with a capture of its "
            f"own such as {{part}}"
        )
    return [patterns.expand(into, {**captures, own[0]: str(number)}) for number in range(count)]


def put_together(
    draft: Draft,
    sources: str | Sequence[str],
    into: str,
    expect: int | None,
    make: Callable[[Sequence[str], tuple[LazyTensor, ...]], LazyTensor],
) -> None:
    """Bind one new name in the place of each group of tensors."""
    groups = grouped(draft, sources, into, expect)
    gone = {name for group in groups for name in group.names}
    require_distinct(
        [*((name, name) for name in draft.tensors if name not in gone),
         *((group.names[0], group.into) for group in groups)]
    )  # fmt: skip
    problems: list[str] = []
    made: dict[tuple[int, ...], LazyTensor] = {}
    first: dict[str, tuple[str, LazyTensor]] = {}
    for group in groups:
        parts = tuple(draft[name] for name in group.names)
        key = tuple(map(id, parts))  # of tied parts, results are tied
        try:
            if key not in made:
                made[key] = make(group.names, parts)
        except PlanError as error:
            problems += error.problems
            continue
        first[group.names[0]] = group.into, made[key]
    if problems:
        raise PlanError(*problems)
    tensors: Tensors = {}
    for name, tensor in draft.tensors.items():
        if name in first:
            tensors[first[name][0]] = first[name][1]
        elif name not in gone:
            tensors[name] = tensor
    draft.tensors = tensors


def take_apart(
    draft: Draft,
    source: str | Sequence[str],
    into: str | Sequence[str],
    make: Callable[[str, LazyTensor], list[LazyTensor]],
) -> None:
    """Bind new names in the place of each tensor that one of the patterns matches."""
    problems: list[str] = []
    made: dict[int, list[LazyTensor]] = {}
    parts: dict[str, Tensors] = {}
    moves: list[tuple[str, str]] = []
    matched: dict[str, str] = {}
    for name, pattern, captures in _captured(draft, source):
        tensor = draft[name]
        try:
            if matched.setdefault(name, pattern) != pattern:
                raise PlanError(f"'{name}' matches both '{matched[name]}' and '{pattern}'")
            if id(tensor) not in made:
                made[id(tensor)] = make(name, tensor)
            names = spread(into, captures, len(made[id(tensor)]))
        except PlanError as error:
            problems += error.problems
            continue
        moves += [(name, part) for part in names]
        parts[name] = dict(zip(names, made[id(tensor)], strict=True))
    if problems:
        raise PlanError(*dict.fromkeys(problems))
    stay = [(name, name) for name in draft.tensors if name not in parts]
    require_distinct([*stay, *moves])
    tensors: Tensors = {}
    for name, tensor in draft.tensors.items():
        tensors |= parts.get(name, {name: tensor})
    draft.tensors = tensors


def _captured(
    draft: Draft, sources: str | Sequence[str]
) -> Iterator[tuple[str, str, patterns.Captures]]:
    for source in as_list(sources):
        yield from ((name, source, captures) for name, captures in draft.captured(source))


def dimension(name: str, spec: TensorSpec, dim: int, *, after: int = 0) -> int:
    """Return a dimension counted from the front; `after` more than the tensor has are allowed.

    Raises PlanError where there is no such dimension, or elements are parts of bytes.
    """
    require_bytes(name, spec)
    rank = len(spec.shape) + after
    if not -rank <= dim < rank:
        raise PlanError(f"'{name}' is {spec}, and has no dimension {dim}")
    return dim % rank


def require_bytes(name: str, spec: TensorSpec) -> None:
    """Raise PlanError where a tensor's elements share bytes."""
    if DTYPES[spec.dtype].bits < 8:
        raise PlanError(f"'{name}' is {spec}, whose elements share bytes and cannot be moved")


def require_alike(names: Sequence[str], parts: Sequence[LazyTensor], dim: int | None) -> None:
    """Raise PlanError where parts differ in dtype, or in another dimension than `dim`."""
    specs = [part.spec if dim is None else part.spec.resized(dim, 0) for part in parts]
    besides = "" if dim is None else f" and may differ in dimension {dim} alone"
    problems = [
        f"'{name}' is {part.spec} but '{names[0]}' is {parts[0].spec}; parts have one dtype"
        f"{besides or ' and one shape'}"
        for name, part, spec in zip(names, parts, specs, strict=True)
        if spec != specs[0]
    ]
    if problems:
        raise PlanError(*problems)

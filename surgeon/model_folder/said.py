"""What the tensors of a model say of the numbers of its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from surgeon.draft import Tensors
from surgeon.lazy import walk
from surgeon.model_folder.architectures import Architecture, Dims, Row
from surgeon.model_folder.case import LABELS, Case, containers, sized
from surgeon.model_folder.expressions import Base, parsed, value
from surgeon.model_folder.families import COMMON

# {what a base is said to be: the tensors that say so}
Sizes = dict[Fraction, list[str]]

# What containers say whose modules are not numbered from 0 on.
GAPS = Fraction(-1)


@dataclass(frozen=True)
class Said:
    """What tensors say of each number, or product of numbers, and where they say it."""

    sizes: Mapping[Base, Sizes]
    places: Mapping[Base, set[tuple[str, int]]]


@dataclass(frozen=True)
class Meaning:
    """Which expression each dimension of each tensor is, before and after."""

    before: Mapping[str, Dims]
    after: Mapping[str, Dims]


def meaning_of(case: Case) -> Meaning:
    """Return what the dimensions of the tensors are, as far as it is known."""
    if case.architecture is None:
        return Meaning(_common(case.before), _common(case.after))
    known = case.architecture
    before: dict[str, Dims] = {}
    used: dict[str, dict[Dims, None]] = {}
    # The layers of a model are alike: one of them is looked at.
    alike: dict[tuple[str, tuple[int, ...]], Dims | None] = {}
    for name, tensor in case.before.items():
        normal, shape = _normal(name), tensor.spec.shape
        if (normal, shape) in alike:
            dims = alike[normal, shape]
        else:
            dims = _best(case, known, name, shape)
            if known.is_uniform(name):
                alike[normal, shape] = dims
        if dims is not None:
            before[name] = dims
            used.setdefault(normal, {})[dims] = None
    origins: dict[object, str] | None = None
    after: dict[str, Dims] = {}
    for name, tensor in case.after.items():
        rank = len(tensor.spec.shape)
        kinds = [dims for dims in used.get(_normal(name), {}) if len(dims) == rank]
        if len(kinds) == 1:
            after[name] = kinds[0]
        elif not kinds:
            if (dims := _best(case, known, name, tensor.spec.shape)) is not None:
                after[name] = dims
        else:  # layers of several kinds: it is what the tensor is that it was made of
            if origins is None:
                origins = {old.byte_origin: other for other, old in case.before.items()}
            made_of = (origins.get(form.byte_origin) for form in walk(tensor))
            found = [before[one] for one in made_of if one in before and before[one] in kinds]
            after[name] = found[0] if found else kinds[0]
    return Meaning(before, after)


def _normal(name: str) -> str:
    return ".".join("{}" if part.isdigit() else part for part in name.split("."))


def _best(case: Case, known: Architecture, name: str, shape: tuple[int, ...]) -> Dims | None:
    """Return the kind of tensor that agrees best with the config as it was."""
    best: tuple[tuple[int, bool], Dims] | None = None
    for row in known.rows_of(name):
        for kind in _kinds_of(row, known.inside(name)):
            if len(kind) != len(shape):
                continue
            agreed = sum(
                value(text, lambda path: case.value(case.old, path)) == size
                for text, size in zip(kind, shape, strict=True)
                if not text.startswith("?")
            )
            rank = (agreed, LABELS in kind)
            if best is None or rank > best[0]:
                best = (rank, kind)
    return best[1] if best else None


def _kinds_of(row: Row, name: str) -> Iterator[Dims]:
    for kind in row.kinds:
        if any("{i}" in text for text in kind):  # the layer's own entry of a list
            number = next((part for part in name.split(".") if part.isdigit()), "0")
            yield tuple(text.replace("{i}", number) for text in kind)
        else:
            yield kind


def _common(tensors: Tensors) -> dict[str, Dims]:
    """Return what goes by the same name in most architectures."""
    found: dict[str, dict[int, str]] = {}
    places = [(key, place) for key, some in COMMON.sizes.items() for place in some]
    places += [(LABELS, place) for place in COMMON.labels]
    for key, place in places:
        for name, dim, _ in sized(place, tensors):
            found.setdefault(name, {})[dim] = key
    return {
        name: tuple(dims.get(dim, "?") for dim in range(len(tensors[name].spec.shape)))
        for name, dims in found.items()
    }


def said(case: Case, tensors: Tensors, dims_of: Mapping[str, Dims]) -> Said:
    """Return what tensors, and containers of numbered modules, say of each number."""
    sizes: dict[Base, Sizes] = {}
    places: dict[Base, set[tuple[str, int]]] = {}
    for name, dims in dims_of.items():
        for dim, (text, size) in enumerate(zip(dims, tensors[name].spec.shape, strict=True)):
            found = None if text.startswith("?") else parsed(text)
            if found is None:
                continue
            base, coefficient, constant = found
            if LABELS in base.keys:
                continue
            one = (Fraction(size) - constant) / coefficient
            sizes.setdefault(base, {}).setdefault(one, []).append(name)
            places.setdefault(base, set()).add((name, dim))
    for container, base, count in lengths(case, tensors):
        sizes.setdefault(base, {}).setdefault(count, []).append(container)
    return Said(sizes, places)


def lengths(case: Case, tensors: Tensors) -> Iterator[tuple[str, Base, Fraction]]:
    """Yield (container, what its length is, its length as that) of the numbered modules."""
    if case.architecture is None:
        return
    for container, numbers in containers(tensors).items():
        text = count_of(case.architecture, container)
        found = parsed(text) if text is not None else None
        if found is not None:
            base, coefficient, constant = found
            whole = max(numbers) < len(numbers)
            yield container, base, (len(numbers) - constant) / coefficient if whole else GAPS


def count_of(known: Architecture, container: str) -> str | None:
    """Return what the length of a container is."""
    inside = known.inside(f"{container}.").removesuffix(".")
    if inside in known.counts:
        return known.counts[inside]
    letters = iter("ijkmnp")
    parts = ["{" + next(letters) + "}" if p.isdigit() else p for p in inside.split(".")]
    return known.counts.get(".".join(parts))

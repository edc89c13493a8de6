"""Sizes of tensors and lengths of containers, explained by the numbers of a config."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tests.architectures import expressions
from tests.architectures.build import NoBuildError, Shapes
from tests.architectures.configs import is_count
from tests.architectures.expressions import Response, Terms

# (tensor, dimension), or (container, -1) for how many numbered modules it has.
Place = tuple[str, int]
Sizes = dict[Place, int]
Builder = Callable[[Mapping[str, int]], Sizes]


def sizes_of(shapes: Shapes) -> Sizes:
    """Return every dimension of every tensor, and the length of every numbered container."""
    found = {(name, dim): size for name, shape in shapes.items() for dim, size in enumerate(shape)}
    for name in shapes:
        parts = name.split(".")
        for index, part in enumerate(parts[:-1]):
            if part.isdigit():
                place = (".".join(parts[:index]), -1)
                found[place] = max(found.get(place, 0), int(part) + 1)
    return found


@dataclass
class Fits:
    """What was found: expressions, and what each number is for.

    `unexplained` are places that change with numbers in no way that is known here; `untried` are
    numbers that no other value could be given to, `tried` the other values of those that matter.
    """

    terms: dict[Place, Terms] = field(default_factory=dict)
    unexplained: dict[Place, tuple[str, ...]] = field(default_factory=dict)
    untried: tuple[str, ...] = ()
    tried: dict[str, int] = field(default_factory=dict)


@dataclass
class Laboratory:
    """Builds of one class, each made once."""

    build: Builder
    numbers: dict[str, int]
    made: dict[tuple[tuple[str, int], ...], Sizes | None] = field(default_factory=dict)

    def sizes(self, changes: Mapping[str, int]) -> Sizes | None:
        """Return the sizes with some numbers changed; None where nothing can be built."""
        key = tuple(sorted(changes.items()))
        if key not in self.made:
            try:
                self.made[key] = self.build(changes)
            except NoBuildError:
                self.made[key] = None
        return self.made[key]


def _others(path: str, number: int) -> list[int]:
    if is_count(path) and number > 0:
        return [number + 1, number * 2, number - 1]
    if number <= 0:
        return [1, 2] if number == 0 else []
    return [number * 2, number * 3, number + 1, number + 8, number * 4, number // 2]


def singles(laboratory: Laboratory, paths: Iterable[str]) -> dict[str, tuple[int, Sizes]]:
    """Return {path: (its other value, the sizes with it)} of the numbers that can be changed."""
    found = {}
    for path in paths:
        for other in _others(path, laboratory.numbers[path]):
            if other > 0 and (sizes := laboratory.sizes({path: other})) is not None:
                found[path] = (other, sizes)
                break
    return found


def fit(laboratory: Laboratory, *, seed: int = 0) -> Fits:
    """Explain every size of a class, and check each explanation on builds that it did not use."""
    base = laboratory.sizes({})
    if base is None:
        raise NoBuildError("the class cannot be built from its base config")
    tried = singles(laboratory, laboratory.numbers)
    effects = {path: one for path, one in tried.items() if one[1] != base}
    checks = checking_builds(laboratory, {path: one[0] for path, one in effects.items()}, seed)
    fits = Fits(
        untried=tuple(p for p in laboratory.numbers if p not in tried),
        tried={path: other for path, (other, _) in effects.items()},
    )
    known: dict[tuple[object, ...], Terms | None] = {}
    for place, size in base.items():
        responses = {
            path: Response(laboratory.numbers[path], other, sizes[place])
            for path, (other, sizes) in effects.items()
            if place in sizes
        }
        moved = tuple(sorted((p, r.after, r.size) for p, r in responses.items() if r.size != size))
        seen = tuple((index, sizes.get(place)) for index, (_, sizes) in enumerate(checks))
        key = (size, moved, seen)
        if key not in known:
            known[key] = _explain(laboratory, place, size, responses, checks, effects)
        terms = known[key]
        if terms is None:
            fits.unexplained[place] = tuple(path for path, *_ in moved) or ("?",)
        else:
            fits.terms[place] = terms
    return fits


def _explain(
    laboratory: Laboratory,
    place: Place,
    size: int,
    responses: Mapping[str, Response],
    checks: list[tuple[dict[str, int], Sizes]],
    effects: Mapping[str, tuple[int, Sizes]],
) -> Terms | None:
    def joint(chosen: tuple[str, ...]) -> int | None:
        sizes = laboratory.sizes({path: effects[path][0] for path in chosen})
        return None if sizes is None else sizes.get(place)

    for terms in expressions.candidates(size, responses, joint):
        if agrees(terms, place, checks):
            return terms
    return None


def agrees(terms: Terms, place: Place, builds: Iterable[tuple[dict[str, int], Sizes]]) -> bool:
    """Return whether an expression gives the size in every build that has the place."""
    return all(
        expressions.value(terms, numbers) == sizes[place]
        for numbers, sizes in builds
        if place in sizes
    )


def checking_builds(
    laboratory: Laboratory, others: Mapping[str, int], seed: int, wanted: int = 4
) -> list[tuple[dict[str, int], Sizes]]:
    """Build with many numbers changed at once, as many as go together."""
    source = random.Random(seed)
    made: list[tuple[dict[str, int], Sizes]] = []
    for turn in range(wanted):
        changes: dict[str, int] = {}
        sizes: Sizes | None = None
        share = (1.0, 0.5, 0.5, 0.3)[turn % 4]
        chosen = [path for path in others if source.random() < share]
        # Everything at once where that goes; else in halves, keeping what goes.
        stack = [chosen]
        attempts = 0
        while stack and attempts < 40:
            part = stack.pop()
            attempts += 1
            new = changes | {path: others[path] for path in part}
            found = laboratory.sizes(new)
            if found is not None:
                changes, sizes = new, found
            elif len(part) > 1:
                half = len(part) // 2
                stack += [part[half:], part[:half]]
        if sizes is not None and changes:
            made.append((laboratory.numbers | changes, sizes))
    return made

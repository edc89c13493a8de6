"""The numbers of a config that are sizes of tensors, or counts of numbered modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from math import isqrt

from surgeon.base.errors import listed
from surgeon.model_folder.case import Case
from surgeon.model_folder.expressions import Base
from surgeon.model_folder.heads import follow_heads
from surgeon.model_folder.said import GAPS, Meaning, Said, Sizes, said

_IMAGE = "image_size"
_PATCH = "patch_size"


def follow_sizes(case: Case, meaning: Meaning) -> None:
    """Follow every number that all tensors agree with in the input."""
    before = said(case, case.before, meaning.before)
    after = said(case, case.after, meaning.after)
    found: dict[Base, Fraction] = {}
    for base, sizes in before.sizes.items():
        if list(sizes) != [base.value(lambda path: case.value(case.old, path))]:
            _require_stated(case, base, after)
            continue
        case.explained |= before.places.get(base, set()) | after.places.get(base, set())
        if (agreed := _agreed(case, base, after.sizes.get(base, {}))) is not None:
            found[base] = agreed
    # A size that no tensor of the input had.
    for base, sizes in after.sizes.items():
        known = base.value(lambda path: case.value(case.new, path)) is not None
        agreed = _agreed(case, base, sizes) if base not in before.sizes and known else None
        if agreed is not None:
            found[base] = agreed
    _follow_simple(case, found)
    follow_heads(case, found)
    _follow_images(case, found)
    _follow_left(case, found)
    for base, size in found.items():
        if base.value(lambda path: case.value(case.new, path)) != size:
            _refuse(case, base, size, listed(after.sizes[base][size]))


def _follow_simple(case: Case, found: Mapping[Base, Fraction]) -> None:
    """Follow the numbers that are sizes themselves."""
    defaults = case.architecture.defaults if case.architecture else {}
    simple = {base.key: size for base, size in found.items() if base.key is not None}
    # A number that has a default is written only where its default, as it is now, is wrong.
    derived = {path for path, texts in defaults.items()
               if any(text and not text.isdigit() for text in texts)}  # fmt: skip
    for path in sorted(simple, key=derived.__contains__):
        if case.value(case.new, path) != simple[path]:
            case.follow(path, int(simple[path]))


def _agreed(case: Case, base: Base, sizes: Sizes) -> Fraction | None:
    """Return what all tensors say; None where they say nothing, or contradict one another."""
    if not sizes:
        return None
    if GAPS in sizes:
        gaps = listed(sizes[GAPS])
        case.contradiction(f"{base}: {gaps} is not numbered from 0 without gaps; renumber it")
        return None
    if len(sizes) == 1 and ((one := next(iter(sizes))).denominator == 1 or base.key is None):
        return one
    reasons = " and ".join(f"{_number(size)} by {listed(names)}" for size, names in sizes.items())
    heads = case.architecture.heads.items() if case.architecture else ()
    shared = "".join(
        f" (in a model of type '{case.old.get('model_type')}' {count} heads divide {total}: they "
        "have no size of their own)"
        for count, total in heads
        if total == base.key
    )
    case.contradiction(f"{base} is {reasons}; change them alike{shared}")
    return None


def _require_stated(case: Case, base: Base, after: Said) -> None:
    """Hold what the recipe states to tensors that the old config did not agree with."""
    stated = [key for key in base.keys if case.states(key)]
    value = base.value(lambda path: case.value(case.new, path))
    if not stated or value is None:
        return
    for size, names in after.sizes.get(base, {}).items():
        if size != value:
            _refuse(case, base, size, listed(names))


def _refuse(case: Case, base: Base, size: Fraction, names: str) -> None:
    """Say that a number is not what tensors say, whoever put it there."""
    images = [key for key in base.keys if key.rpartition(".")[2] == _IMAGE]
    if images and len(base.terms) == 1:
        now = base.value(lambda path: case.value(case.new, path))
        case.contradiction(
            f"{images[0]} {json.dumps(case.look_up(case.new, images[0]))} is "
            f"{'nothing' if now is None else _number(now)} patches, but {names} has "
            f"{_number(size)}; state {images[0]} in output.config"
        )
        return
    stated = [key for key in base.keys if case.states(key)]
    for key in stated:
        value = json.dumps(case.look_up(case.stated, key))
        case.contradiction(
            f"output.config.{key} is {value}, but {base} is {_number(size)} by {names}"
        )
    if not stated:
        now = base.value(lambda path: case.value(case.new, path))
        case.contradiction(
            f"{base} would be {'nothing' if now is None else _number(now)}, but it is "
            f"{_number(size)} by {names}; change them alike, or state it in output.config"
        )


def _number(size: Fraction) -> str:
    return str(size.numerator) if size.denominator == 1 else f"{float(size):g}"


def _follow_images(case: Case, found: Mapping[Base, Fraction]) -> None:
    """Follow the size of images, from how many patches there are."""
    for base, patches in found.items():
        paths = [key for key in base.keys if key.rpartition(".")[2] == _IMAGE]
        beside = [key for key in base.keys if key.rpartition(".")[2] == _PATCH]
        if len(paths) != 1 or len(beside) != 1 or len(base.keys) != 2:
            continue
        (path,), (patch_path,) = paths, beside
        if base.value(lambda key: case.value(case.new, key)) == patches or case.states(path):
            continue
        side, patch = isqrt(max(int(patches), 0)), case.value(case.new, patch_path)
        if side and patches == side * side and patch:
            case.follow(path, side * int(patch))
            case.notes.append(f"{path} changes; the image processor's own config does not")


def _follow_left(case: Case, found: Mapping[Base, Fraction]) -> None:
    """Follow a number that is left, where one and only one change makes everything right."""

    def wrong(changes: Mapping[str, Fraction]) -> list[Base]:
        def numbers(path: str) -> Fraction | None:
            return changes[path] if path in changes else case.value(case.new, path)

        return [base for base, size in found.items() if base.value(numbers) != size]

    settled = {base.key for base in found}
    for base in (left := wrong({})):
        ways: list[tuple[str, int]] = []
        for key in base.keys:
            if key in settled or case.states(key) or not case.value(case.new, key):
                continue
            new = _solved(case, base, key, found[base])
            if new is not None and len(wrong({key: Fraction(new)})) < len(left):
                ways.append((key, new))
        if len(ways) == 1:
            case.follow(*ways[0])
            left = wrong({})


def _solved(case: Case, base: Base, key: str, wanted: Fraction) -> int | None:
    """Return the number with which a base is what is wanted, where that is a whole number."""

    def at(number: int) -> Fraction | None:
        return base.value(lambda p: Fraction(number) if p == key else case.value(case.new, p))

    one, two = at(1), at(2)
    if one is None or two is None or one == two:
        return None
    number = 1 + (wanted - one) / (two - one)
    if number.denominator == 1 and number > 0 and at(int(number)) == wanted:
        return int(number)
    return None

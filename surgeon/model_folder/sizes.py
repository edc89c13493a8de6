"""The numbers of a config that are sizes of tensors, or counts of numbered modules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from math import isqrt

from surgeon.draft import Tensors
from surgeon.model_folder.case import Case, Json, listed, numbered, sized
from surgeon.model_folder.families import Family

# Keys of the config whose product a size is.
Base = tuple[str, ...]
# {what a base is said to be: the tensors that say so}
Said = dict[Fraction, list[str]]

_FACTOR = re.compile(r"([*/]?)(\w+)")
# What containers say whose modules are not numbered from 0 on.
_GAPS = Fraction(-1)


@lru_cache
def _factors(product: str) -> tuple[tuple[str, str], ...]:
    return tuple((sign, word) for sign, word in _FACTOR.findall(product))


def _base(product: str) -> tuple[int, Base]:
    """Split `3*n_embd` into its number and its keys."""
    words = [word for _, word in _factors(product)]
    (number,) = [int(word) for word in words if word.isdigit()] or [1]
    return number, tuple(word for word in words if not word.isdigit())


def _value(config: Json, family: Family, key: str) -> Fraction | None:
    """Return a number of a config, or what it is by default; None where it has none."""
    value = config.get(key)
    if value is None and key in family.defaults:
        return _product(config, family, family.defaults[key])
    return Fraction(value) if type(value) is int and value > 0 else None


def _product(config: Json, family: Family, product: str) -> Fraction | None:
    result = Fraction(1)
    for sign, word in _factors(product):
        value = Fraction(int(word)) if word.isdigit() else _value(config, family, word)
        if value is None:
            return None
        result = result / value if sign == "/" else result * value
    return result


def _said(
    family: Family, tensors: Tensors
) -> tuple[dict[Base, Said], dict[Base, set[tuple[str, int]]]]:
    """Return what tensors say of each base, and the dimensions that say it."""
    said: dict[Base, Said] = {}
    dimensions: dict[Base, set[tuple[str, int]]] = {}
    for product, places in family.sizes.items():
        number, base = _base(product)
        for place in places:
            for name, dim, size in sized(place, tensors):
                said.setdefault(base, {}).setdefault(Fraction(size, number), []).append(name)
                dimensions.setdefault(base, set()).add((name, dim))
    for key, segment in family.counts.items():
        for container, numbers in numbered(segment, tensors).items():
            count = Fraction(len(numbers)) if max(numbers) < len(numbers) else _GAPS
            said.setdefault((key,), {}).setdefault(count, []).append(container)
    return said, dimensions


def follow_sizes(case: Case) -> None:
    """Follow every number that all tensors agree with in the input."""
    family = case.family
    said_before, places_before = _said(family, case.before)
    said_after, places_after = _said(family, case.after)
    found: dict[Base, Fraction] = {}
    for base, said in said_before.items():
        if list(said) != [_product(case.old, family, "*".join(base))]:
            continue
        case.explained |= places_before.get(base, set()) | places_after.get(base, set())
        if (agreed := _agreed(case, base, said_after.get(base, {}))) is not None:
            found[base] = agreed
    # A number that has a default is written only where its default, as it is now, is wrong.
    for key in sorted(
        (base[0] for base in found if len(base) == 1), key=family.defaults.__contains__
    ):
        if _value(case.new, family, key) != found[(key,)]:
            case.follow(key, int(found[(key,)]))
    _follow_heads(case, found)
    for base, value in found.items():
        if _product(case.new, family, "*".join(base)) != value:
            _refuse(case, base, value, listed(said_after[base][value]))


def _agreed(case: Case, base: Base, said: Said) -> Fraction | None:
    """Return what all tensors say; None where they say nothing, or the recipe settles it."""
    if not said:
        return None
    if _GAPS in said:
        gaps = listed(said[_GAPS])
        case.contradiction(f"{base[0]}: {gaps} is not numbered from 0 without gaps; renumber it")
        return None
    if len(said) == 1 and (value := next(iter(said))).denominator == 1:
        return value
    settled = _product(case.new, case.family, "*".join(base))
    if set(base) & case.stated.keys() and (settled is None or settled in said):
        return None
    reasons = " and ".join(f"{_number(size)} by {listed(names)}" for size, names in said.items())
    case.contradiction(
        f"{'*'.join(base)} is {reasons}; change them alike, or state it in output.config"
    )
    return None


def _refuse(case: Case, base: Base, value: Fraction, names: str) -> None:
    """Say that a number is not what tensors say, whoever put it there."""
    name = "*".join(base)
    stated = [key for key in base if key in case.stated]
    for key in stated:
        case.contradiction(
            f"output.config.{key} is {json.dumps(case.stated[key])}, but {name} is "
            f"{_number(value)} by {names}"
        )
    if not stated:
        now = _product(case.new, case.family, name)
        case.contradiction(
            f"{name} would be {'nothing' if now is None else _number(now)}, but it is "
            f"{_number(value)} by {names}; change them alike, or state it in output.config"
        )


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def _follow_heads(case: Case, found: Mapping[Base, Fraction]) -> None:
    """Follow the numbers of heads: heads of the same size as before, else as many as before."""
    family = case.family
    wanted = {key: found.get(_base(product)[1]) for key, product in family.heads.items()}
    totals = {key: total for key, total in wanted.items() if total is not None}
    width = _value(case.old, family, "head_dim")
    if not totals or len(totals) < len(wanted) or width is None:
        return
    is_a_key = any("head_dim" in _base(product)[1] for product in family.sizes)
    if is_a_key and (("head_dim",) in found or "head_dim" in case.stated):
        width = _value(case.new, family, "head_dim") or width
    else:
        width = _width(case, totals, width)
    for key, total in totals.items():
        if (total / width).denominator != 1:
            case.contradiction(
                f"{key}: {_number(total)} is not a multiple of {_number(width)}, the size of a "
                f"head; state {key} in output.config"
            )
        elif _value(case.new, family, key) != total / width:
            case.follow(key, int(total / width))
            if key in case.stated and not is_a_key:
                case.contradiction(
                    f"output.config.{key} is {json.dumps(case.stated[key])}, which does not divide "
                    f"{_number(total)}"
                )
    if is_a_key and _value(case.new, family, "head_dim") != width:
        case.follow("head_dim", int(width))
    _require_whole_groups(case, list(totals))


def _width(case: Case, totals: Mapping[str, Fraction], width: Fraction) -> Fraction:
    """Return the size of a head that goes with the totals, and with counts that are stated."""
    for key, total in totals.items():
        count = _value(case.new, case.family, key)
        if key in case.stated and count and (total / count).denominator == 1:
            return total / count
    if all((total / width).denominator == 1 for total in totals.values()):
        return width
    counts = {key: _value(case.old, case.family, key) for key in totals}
    as_many = {total / (counts[key] or 1) for key, total in totals.items()}
    (same, *others) = as_many
    return width if others or same.denominator != 1 else same


def _require_whole_groups(case: Case, keys: list[str]) -> None:
    """Report query heads that cannot be shared out among key and value heads."""
    counts = [_value(case.new, case.family, key) for key in keys]
    if len(counts) == 2 and counts[0] and counts[1] and (counts[0] / counts[1]).denominator != 1:
        case.contradiction(
            f"{keys[0]} {counts[0]} is not a multiple of {keys[1]} {counts[1]}; change both alike"
        )


def follow_grid(case: Case) -> None:
    """Follow the size of images, from how many position embeddings there are."""
    grid = case.family.grid
    if grid is None:
        return
    before = list(sized(f"{grid.place}[1]", case.before))
    after = list(sized(f"{grid.place}[1]", case.after))
    patches = _patches(case.old)
    if not after or patches is None or {size for *_, size in before} != {patches + grid.extra}:
        return
    case.explained |= {(name, dim) for name, dim, _ in before}
    name, _, size = after[0]
    if _patches(case.new) == size - grid.extra:
        return
    side = isqrt(max(size - grid.extra, 0))
    if side and side * side == size - grid.extra and "image_size" not in case.stated:
        case.follow("image_size", side * case.new["patch_size"])
        case.notes.append("image_size changes; the image processor's own config does not")
        return
    case.contradiction(
        f"image_size {json.dumps(case.new['image_size'])} is {_patches(case.new)} patches, but "
        f"'{name}' has {size - grid.extra}; state image_size in output.config"
    )


def _patches(config: Json) -> int | None:
    size, patch = config.get("image_size"), config.get("patch_size")
    sides = [side for side in (size if isinstance(size, list) else [size] * 2) if type(side) is int]
    if len(sides) != 2 or type(patch) is not int or patch < 1:
        return None
    return (sides[0] // patch) * (sides[1] // patch)

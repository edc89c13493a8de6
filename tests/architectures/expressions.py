"""Sizes as sums of products of config numbers: `num_attention_heads*head_dim+2`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

# {((path, exponent), ...): coefficient}
Terms = tuple[tuple[tuple[tuple[str, int], ...], Fraction], ...]

_MOST_KEYS = 6
_MOST_FACTORS = 3
_NICEST = 4096
_MOST_DENOMINATOR = 64
_MOST_COEFFICIENT = 10**7


@dataclass(frozen=True)
class Response:
    """What a size became when one number of the config was changed."""

    before: int
    after: int
    size: int


def value(terms: Terms, numbers: Mapping[str, int]) -> Fraction | None:
    """Return what an expression is with these numbers; None where one is missing or zero."""
    total = Fraction(0)
    for factors, coefficient in terms:
        product = coefficient
        for path, exponent in factors:
            number = numbers.get(path)
            if number is None or (not number and exponent < 0):
                return None
            product *= Fraction(number) ** exponent
        total += product
    return total


def text(terms: Terms) -> str:
    """Return an expression as the data file writes it."""
    written = ""
    for factors, coefficient in terms:
        above = [path for path, exponent in factors for _ in range(exponent)]
        below = [path for path, exponent in factors for _ in range(-exponent)]
        number = abs(coefficient.numerator)
        words = "*".join([str(number)] * (number != 1 or not above) + above)
        below += [str(coefficient.denominator)] * (coefficient.denominator != 1)
        sign = "-" if coefficient < 0 else "+" if written else ""
        written += sign + "/".join([words, *below])
    return written or "0"


def keys(terms: Terms) -> set[str]:
    """Return the paths of an expression."""
    return {path for factors, _ in terms for path, _ in factors}


def constant(size: int) -> Terms:
    """Return an expression that no number changes."""
    return (((), Fraction(size)),)


def candidates(
    size: int, responses: Mapping[str, Response], joint: Callable[[tuple[str, ...]], int | None]
) -> Iterator[Terms]:
    """Yield expressions that give a size and its responses, the simplest first."""
    moved = {path: one for path, one in responses.items() if one.size != size}
    if not moved:
        yield constant(size)
        return
    for offset in (0, 1, 2, 3, 4, 5, -1, -2):
        if (terms := _product(size, moved, offset)) is not None:
            yield terms
    if len(moved) <= _MOST_KEYS and (terms := _multilinear(size, moved, joint)) is not None:
        yield terms


def _product(size: int, moved: Mapping[str, Response], offset: int) -> Terms | None:
    base = size - offset
    if base <= 0:
        return None
    coefficient = Fraction(base)
    factors = []
    for path, one in sorted(moved.items()):
        if one.before <= 0 or one.after <= 0 or one.size <= offset:
            return None
        growth, ratio = Fraction(one.size - offset, base), Fraction(one.after, one.before)
        for exponent in (1, -1, 2, -2, 3):
            if growth == ratio**exponent:
                factors.append((path, exponent))
                coefficient /= Fraction(one.before) ** exponent
                break
        else:
            return None
    if coefficient.numerator > _NICEST or coefficient.denominator > _NICEST:
        return None
    terms: list[tuple[tuple[tuple[str, int], ...], Fraction]] = [(tuple(factors), coefficient)]
    if offset:
        terms.append(((), Fraction(offset)))
    return tuple(terms)


def _multilinear(
    size: int, moved: Mapping[str, Response], joint: Callable[[tuple[str, ...]], int | None]
) -> Terms | None:
    """Fit sums of products, from builds in which several numbers are changed at once.

    Some of the numbers may be below the line: what is linear in 1/x is fitted in 1/x.
    """
    paths = sorted(moved)
    most = min(_MOST_FACTORS, len(paths))
    sizes: dict[tuple[str, ...], Fraction] = {(): Fraction(size)}
    sizes |= {(path,): Fraction(moved[path].size) for path in paths}
    for count in range(2, most + 1):
        for chosen in combinations(paths, count):
            found = joint(chosen)
            if found is None:
                return None
            sizes[chosen] = Fraction(found)
    for count in range(3):
        for below in combinations(paths, count):
            if (terms := _solve(paths, most, sizes, moved, below)) is not None:
                return terms
    return None


def _solve(
    paths: list[str],
    most: int,
    sizes: Mapping[tuple[str, ...], Fraction],
    moved: Mapping[str, Response],
    below: tuple[str, ...],
) -> Terms | None:
    def both(path: str) -> tuple[Fraction, Fraction]:
        one = moved[path]
        if path in below:
            return Fraction(1, one.before or 1), Fraction(1, one.after)
        return Fraction(one.before), Fraction(one.after)

    # A difference over a set of numbers is the coefficient of their product, and of larger ones,
    # which are taken first.
    found: dict[tuple[str, ...], Fraction] = {}
    for count in range(most, -1, -1):
        for chosen in combinations(paths, count):
            difference = Fraction(0)
            for inner in range(count + 1):
                for part in combinations(chosen, inner):
                    difference += (-1) ** (count - inner) * sizes[part]
            for larger, coefficient in found.items():
                if set(chosen) < set(larger):
                    share = coefficient
                    for path in larger:
                        before, after = both(path)
                        share *= after - before if path in chosen else before
                    difference -= share
            for path in chosen:
                before, after = both(path)
                difference /= after - before
            if difference:
                found[chosen] = difference
    if any(c.denominator > _MOST_DENOMINATOR or abs(c) > _MOST_COEFFICIENT for c in found.values()):
        return None
    ordered = sorted(found.items(), key=lambda item: (-len(item[0]), item[0]))
    terms = tuple(
        (tuple((path, -1 if path in below else 1) for path in chosen), c) for chosen, c in ordered
    )
    return terms if is_natural(terms) else None


def is_natural(terms: Terms) -> bool:
    """Say whether an architecture may compute so: two values of each number fit any surface.

    Where a size goes by a square, or by what is rounded, the surface through a few points has
    quotients, or parts of whole numbers, that are taken away from each other.
    """
    # One is often taken off: 2*image_size/patch_size-1.
    is_negative = any(c < 0 and (factors or c < -2) for factors, c in terms)
    has_quotients = any(exponent < 0 for factors, _ in terms for _, exponent in factors)
    return not is_negative or not (
        has_quotients or any(coefficient.denominator > 1 for _, coefficient in terms)
    )

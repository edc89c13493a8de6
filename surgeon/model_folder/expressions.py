"""Sizes as sums of products of a config's numbers, as the data of architectures writes them.

`num_attention_heads*head_dim+2*num_key_value_heads*head_dim`, `hidden_size/num_attention_heads`,
`image_size*image_size/patch_size/patch_size+1`. Nested configs are written with dots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Numbers = Callable[[str], Fraction | None]

_TERM = re.compile(r"([+-]?)([^+-]+)")
_FACTOR = re.compile(r"([*/]?)([^*/]+)")


@dataclass(frozen=True)
class Term:
    """A coefficient times some numbers, over some numbers."""

    coefficient: Fraction
    above: tuple[str, ...]
    below: tuple[str, ...] = ()

    def value(self, numbers: Numbers) -> Fraction | None:
        """Return what it is; None where a number is missing."""
        above, below = _product(self.above, numbers), _product(self.below, numbers)
        return None if above is None or not below else self.coefficient * above / below


def _product(paths: tuple[str, ...], numbers: Numbers) -> Fraction | None:
    result = Fraction(1)
    for path in dict.fromkeys(paths):
        times, number = paths.count(path), numbers(path)
        if number is not None:
            result *= number**times
            continue
        # Of an image, where both sides are stated.
        sides = [numbers(f"{path}.{side}") for side in range(times)] if times > 1 else [None]
        for side in sides:
            if side is None:
                return None
            result *= side
    return result


@dataclass(frozen=True)
class Base:
    """What is left of a size without its coefficient and its constant: `n_embd` of `3*n_embd+2`."""

    terms: tuple[Term, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The numbers of the config that it is made of, each once."""
        return tuple(dict.fromkeys(key for term in self.terms for key in term.above + term.below))

    @property
    def key(self) -> str | None:
        """The one number that it is, where it is one."""
        (first, *others) = self.terms
        is_one = not others and not first.below and len(first.above) == 1
        return first.above[0] if is_one else None

    @property
    def factors(self) -> tuple[str, str] | None:
        """The two numbers whose product it is, where it is one."""
        (first, *others) = self.terms
        is_product = not others and not first.below and len(first.above) == 2
        return (first.above[0], first.above[1]) if is_product else None

    def value(self, numbers: Numbers) -> Fraction | None:
        """Return what it is; None where a number is missing."""
        total = Fraction(0)
        for term in self.terms:
            if (part := term.value(numbers)) is None:
                return None
            total += part
        return total

    def __str__(self) -> str:
        return "+".join(_written(term) for term in self.terms).replace("+-", "-")


def _written(term: Term) -> str:
    number = [str(term.coefficient)] * (term.coefficient != 1 or not term.above)
    # A number of heads before the size of one.
    above = sorted(term.above, key=lambda path: path.endswith(("dim", "d_kv")))
    return "/".join(["*".join([*number, *above]), *term.below])


@lru_cache(maxsize=4096)
def parsed(text: str) -> tuple[Base, Fraction, Fraction] | None:
    """Return (base, coefficient, constant) of an expression; None of one without numbers."""
    terms = list(_terms(text))
    constant = sum((t.coefficient for t in terms if not t.above and not t.below), Fraction(0))
    named = [term for term in terms if term.above or term.below]
    if not named:
        return None
    coefficient = named[0].coefficient if len(named) == 1 else Fraction(1)
    scaled = tuple(Term(t.coefficient / coefficient, t.above, t.below) for t in named)
    return Base(scaled), coefficient, constant


def value(text: str, numbers: Numbers) -> Fraction | None:
    """Return what an expression is; None where a number of it is missing."""
    found = parsed(text)
    if found is None:
        return sum((term.coefficient for term in _terms(text)), Fraction(0))
    base, coefficient, constant = found
    inner = base.value(numbers)
    return None if inner is None else inner * coefficient + constant


def _terms(text: str) -> Iterator[Term]:
    for sign, product in _TERM.findall(text):
        coefficient = Fraction(-1 if sign == "-" else 1)
        above: list[str] = []
        below: list[str] = []
        for operator, word in _FACTOR.findall(product):
            if word.isdigit():
                coefficient *= Fraction(1, int(word)) if operator == "/" else Fraction(int(word))
            else:
                (below if operator == "/" else above).append(word)
        yield Term(coefficient, tuple(above), tuple(below))

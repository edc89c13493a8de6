"""How long Python's own engine may take for a regular expression, read off its parsed form.

That engine tries one way after another, and where there are several of matching the same text, it
may try all: `(a+)+b` takes 2^n steps for n times `a`, `.*a.*b` n². Here the ways are counted: a
repetition that may end at any of n places multiplies them by n, unless what it repeats and what
follows start with different characters, so that it can end at one place alone; alternatives that
start alike multiply them by their number; and what has several ways inside of a repetition has no
bound at all.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import factorial, inf, prod
from typing import Any

# Python's own parser of regular expressions, by the names it has had.
PARSER: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
# A repetition up to as often is so many alternatives.
_FEW = 8
_MOST_FACTOR = 1 << 60
# Sets of first characters: these codes, one number for all others, and one for the text's end.
_OTHERS, _END = 256, 257
_DOT = ord(".")
_ALL = frozenset(range(_END + 1))
_AT_END = frozenset({_END})
_ONE = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}
Firsts = frozenset[int]


# How often something grows with: the text's length, its dots, and the longest part between dots.
Powers = tuple[int, int, int]
_NONE: Powers = (0, 0, 0)
_LENGTH: Powers = (1, 0, 0)
_DOTS: Powers = (0, 1, 0)
_PART: Powers = (0, 0, 1)


@dataclass(frozen=True)
class Cost:
    """Steps of each kind, as powers of a text's sizes, times factor and the size of the pattern.

    `ways` and `factor` are in how many ways all before a place may match; None: beyond any power.
    """

    spent: frozenset[Powers] = frozenset({_NONE})
    ways: Powers | None = _NONE
    factor: int = 1

    def steps(self, sizes: Powers) -> float:
        """Return about how many steps a text of these sizes takes at most."""
        if self.ways is None:
            return inf
        spent: float = self.factor * sum(
            prod(size**power / factorial(power) for size, power in zip(sizes, powers, strict=True))
            for powers in self.spent
        )
        return spent

    @property
    def is_linear(self) -> bool:
        return self.ways is not None and self.factor <= _FEW**2 and max(map(sum, self.spent)) <= 1

    def of_lines(self) -> Cost:
        """Return the cost for texts with newlines, at which what ends in a dot may stop."""
        return replace(self, spent=frozenset(_times(powers, _LENGTH) for powers in self.spent))

    def spending(self, powers: Iterable[Powers]) -> Cost:
        """Return the cost with steps that are spent once for each way."""
        if self.ways is None:
            return self
        return replace(self, spent=self.spent | {_times(self.ways, found) for found in powers})

    def choosing(self, powers: Powers | None, factor: int = 1) -> Cost:
        """Return the cost with as many ways more."""
        ways = None if self.ways is None or powers is None else _times(self.ways, powers)
        return replace(self, ways=ways, factor=min(self.factor * factor, _MOST_FACTOR))


def sizes_of(text: str) -> Powers:
    """Return the sizes of a text that powers are of, each at least 1."""
    return len(text) + 1, text.count(".") + 1, max(map(len, text.split("."))) + 1


def _times(a: Powers, b: Powers) -> Powers:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def cost_of(parsed: Any) -> Cost:
    """Return what matching all of a text without newlines costs."""
    folds = bool(parsed.state.flags & (re.IGNORECASE | re.LOCALE | re.MULTILINE))
    return _Analysis(folds).sequence(list(parsed), _AT_END, Cost())


def may_be_empty(items: Sequence[Any]) -> bool:
    """Say whether some items may match nothing, as far as it can be told."""
    return _Analysis(False).first_of(items)[1]


def is_one(operation: str, argument: Any, character: str) -> bool:
    """Say whether a character is of a set; a newline is of ANY, too."""
    code = ord(character)
    match operation:
        case "LITERAL":
            return bool(code == argument)
        case "NOT_LITERAL":
            return bool(code != argument)
        case "ANY":
            return True
        case "RANGE":
            return bool(argument[0] <= code <= argument[1])
        case "CATEGORY":
            return _is_category(str(argument), character)
        case "IN":
            negated = str(argument[0][0]) == "NEGATE"
            chosen = argument[1:] if negated else argument
            return any(is_one(str(op), item, character) for op, item in chosen) is not negated
    raise ValueError(f"{operation} is not followed here")


def _is_category(category: str, character: str) -> bool:
    kinds: dict[str, Callable[[str], object]] = {
        "DIGIT": str.isdecimal,
        "SPACE": str.isspace,
        "WORD": lambda one: one.isalnum() or one == "_",
    }
    name = category.removeprefix("CATEGORY_")
    return bool(kinds[name.removeprefix("NOT_")](character)) is not name.startswith("NOT_")


@cache
def _characters(operation: str, argument: Any) -> Firsts:
    found = {code for code in range(_OTHERS) if is_one(operation, argument, chr(code))}
    is_within = operation == "LITERAL" and argument < _OTHERS
    if operation == "IN":
        is_within = all(
            (str(op) == "LITERAL" and item < _OTHERS) or (str(op) == "RANGE" and item[1] < _OTHERS)
            for op, item in argument
        )
    return frozenset(found if is_within else {*found, _OTHERS})


class _Analysis:
    def __init__(self, folds: bool) -> None:
        # Where case does not matter, or lines have ends of their own, sets say little.
        self._folds = folds

    def sequence(self, items: Sequence[Any], follow: Firsts, before: Cost) -> Cost:
        """Return the cost of all up to the end of these items."""
        after = [follow]
        for item in reversed(items[1:]):
            after.append(self.firsts([item], after[-1]))
        cost = before
        for operation, argument in items:
            cost = self._item(str(operation), argument, after.pop(), cost)
        return cost

    def _item(self, operation: str, argument: Any, follow: Firsts, before: Cost) -> Cost:
        match operation:
            case "SUBPATTERN":
                inner = _Analysis(self._folds or bool(argument[1] or argument[2]))
                return inner.sequence(list(argument[3]), follow, before)
            case "BRANCH":
                return self._branch(argument[1], follow, before)
            case "GROUPREF_EXISTS":
                parts = [part for part in argument[1:] if part is not None]
                return _worst(self.sequence(part, follow, before) for part in parts)
            case "ASSERT" | "ASSERT_NOT" | "ATOMIC_GROUP":
                body = argument if operation == "ATOMIC_GROUP" else argument[1]
                inside = self.sequence(list(body), _ALL, Cost())
                found = before.spending(inside.spent).choosing(_NONE, inside.factor)
                return found if inside.ways is not None else found.choosing(None)
            case "GROUPREF":
                return before.spending([_LENGTH])
        if operation in _REPEATS:
            return self._repeat(operation, argument, follow, before)
        return before.spending([_NONE])

    def _branch(self, branches: Sequence[Any], follow: Firsts, before: Cost) -> Cost:
        worst = _worst(self.sequence(list(branch), follow, before) for branch in branches)
        return worst.choosing(_NONE, self._alike(branches, follow))

    def _alike(self, branches: Sequence[Any], follow: Firsts) -> int:
        """Return how many of some alternatives may match at one place."""
        texts = [_literal(branch) for branch in branches]
        if all(text is not None for text in texts) and not self._folds:
            return max(sum(text[: len(part)] == part for part in texts) for text in texts)  # type: ignore[index,arg-type]
        firsts = [self.firsts(list(branch), follow) for branch in branches]
        return max(sum(code in first for first in firsts) for code in _ALL)

    def _repeat(self, operation: str, argument: Any, follow: Firsts, before: Cost) -> Cost:
        least, most, body = argument
        items = list(body)
        first, may_be_empty = self.first_of(items)
        is_long = int(most) > _FEW
        if _is_any(items) and most == PARSER.MAXREPEAT and follow == _AT_END:
            # It takes all that is left, so that there is no second try.
            return replace(before, spent=before.spent | {_LENGTH})
        if int(most) == 1:
            once = self.sequence(items, follow, before)
            return once.choosing(_NONE, 2 if first & follow or may_be_empty else 1)
        inside = self.sequence(items, first | follow, Cost())
        is_one_way = inside.ways == _NONE and inside.factor == 1 and not may_be_empty
        if int(most) > 1 and not is_one_way and (is_long or inside.ways != _NONE):
            return before.choosing(None)
        often = self._times(items) if is_long else _NONE
        if is_one_way and not _holds(items, ("ASSERT", "ASSERT_NOT", "GROUPREF")):
            # One after another these go over the text once.
            spent = [often if inside.spent == {_NONE} else _LENGTH]
        else:
            spent = [_times(often, powers) for powers in inside.spent]
        found = before.spending(spent)
        if inside.ways is None:
            return found.choosing(None)
        if not is_long:
            found = found.choosing(inside.ways, inside.factor ** int(most))
        if first & follow and operation != "POSSESSIVE_REPEAT":
            found = found.choosing(often, 1 if is_long else int(most) - int(least) + 1)
        return found

    def _times(self, items: Sequence[Any]) -> Powers:
        """Return how often something can be repeated at most."""
        if any(str(operation) == "LITERAL" and code == _DOT for operation, code in items):
            return _DOTS
        if len(items) == 1 and _DOT not in self.first_of(items)[0]:
            return _PART if str(items[0][0]) in _ONE else _LENGTH
        return _LENGTH

    def firsts(self, items: Sequence[Any], follow: Firsts) -> Firsts:
        """Return with which characters these items, and what follows them, may start."""
        found, may_be_empty = self.first_of(items)
        return found | follow if may_be_empty else found

    def first_of(self, items: Sequence[Any]) -> tuple[Firsts, bool]:
        """Return with which characters some items may start, and whether they may be empty."""
        found: Firsts = frozenset()
        for operation, argument in items:
            name = str(operation)
            first, may_be_empty = self._first(name, argument)
            found |= first
            if not may_be_empty:
                return found, False
        return found, True

    def _first(self, operation: str, argument: Any) -> tuple[Firsts, bool]:
        if operation in ("AT", "ASSERT", "ASSERT_NOT"):
            return frozenset(), True
        if operation in _ONE:
            return (_ALL - _AT_END) if self._folds else _set(operation, argument), False
        if operation == "SUBPATTERN":
            inner = _Analysis(self._folds or bool(argument[1] or argument[2]))
            return inner.first_of(list(argument[3]))
        if operation == "ATOMIC_GROUP":
            return self.first_of(list(argument))
        if operation == "BRANCH":
            parts = [self.first_of(list(branch)) for branch in argument[1]]
            return frozenset().union(*(first for first, _ in parts)), any(e for _, e in parts)
        if operation in _REPEATS:
            first, may_be_empty = self.first_of(list(argument[2]))
            return first, may_be_empty or int(argument[0]) == 0
        return _ALL, True


def _set(operation: str, argument: Any) -> Firsts:
    return _characters(operation, tuple(argument) if operation == "IN" else argument)


def _worst(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    ways = [cost.ways for cost in found if cost.ways is not None]
    return Cost(
        frozenset().union(*(cost.spent for cost in found)),
        (max(w[0] for w in ways), max(w[1] for w in ways), max(w[2] for w in ways))
        if len(ways) == len(found)
        else None,
        max(cost.factor for cost in found),
    )


def _literal(branch: Any) -> tuple[int, ...] | None:
    items = list(branch)
    codes = tuple(argument for operation, argument in items if str(operation) == "LITERAL")
    return codes if len(codes) == len(items) else None


def _is_any(items: Sequence[Any]) -> bool:
    return len(items) == 1 and str(items[0][0]) == "ANY"


def _holds(items: Iterable[Any], operations: Sequence[str]) -> bool:
    """Say whether any of some operations is among these items, however deep."""
    for operation, argument in items:
        name = str(operation)
        if name in operations:
            return True
        bodies: Sequence[Any] = ()
        if name == "SUBPATTERN":
            bodies = (argument[3],)
        elif name == "BRANCH":
            bodies = argument[1]
        elif name in _REPEATS:
            bodies = (argument[2],)
        if any(_holds(list(body), operations) for body in bodies):
            return True
    return False

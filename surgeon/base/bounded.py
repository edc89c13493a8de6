"""Regular expressions that come with data: matched in time that grows with text and pattern."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

# Python's own parser of regular expressions, by the names it has had.
_PARSER: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_LONGEST = 2_000
_MOST_STEPS = 50_000


def fullmatch(pattern: str, text: str) -> bool:
    """Say whether all of a text matches; raises ValueError for a pattern that is not followed here.

    All places that a match may have reached are followed at once, so that no pattern takes
    exponential time; what refers back or looks around is refused.
    """
    if len(pattern) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    try:
        parsed = _PARSER.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    return len(text) in _Matcher(text).ends(parsed, {0})


class _Matcher:
    def __init__(self, text: str) -> None:
        self._text = text
        self._steps = 0

    def ends(self, items: Any, starts: set[int]) -> set[int]:
        """Return where a sequence may end that starts at one of these places."""
        places = starts
        for operation, argument in items:
            self._steps += len(places) + 1
            if self._steps > _MOST_STEPS * (1 + len(self._text) // 100):
                raise ValueError("takes too long to match")
            places = self._after(str(operation), argument, places)
            if not places:
                break
        return places

    def _after(self, operation: str, argument: Any, places: set[int]) -> set[int]:
        match operation:
            case "BRANCH":
                return {end for branch in argument[1] for end in self.ends(branch, places)}
            case "SUBPATTERN":
                if argument[1] or argument[2]:
                    raise ValueError("has flags of its own")
                return self.ends(argument[3], places)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, items = argument
                return self._repeated(least, most, items, places)
            case "AT":
                wanted = {"AT_BEGINNING": 0, "AT_BEGINNING_STRING": 0, "AT_END": len(self._text),
                          "AT_END_STRING": len(self._text)}  # fmt: skip
                if str(argument) not in wanted:
                    raise ValueError(f"{argument} is not followed here")
                return places & {wanted[str(argument)]}
        return {
            place + 1
            for place in places
            if place < len(self._text) and _is_one(operation, argument, self._text[place])
        }

    def _repeated(self, least: int, most: Any, items: Any, places: set[int]) -> set[int]:
        for _ in range(least):
            before, places = places, self.ends(items, places)
            if not places or places == before:
                break
        found, newest, left = set(places), places, int(most) - least
        while newest and left > 0:
            newest = self.ends(items, newest) - found
            found |= newest
            left -= 1
        return found


def _is_one(operation: str, argument: Any, character: str) -> bool:
    code = ord(character)
    match operation:
        case "LITERAL":
            return bool(code == argument)
        case "NOT_LITERAL":
            return bool(code != argument)
        case "ANY":
            return character != "\n"
        case "RANGE":
            return bool(argument[0] <= code <= argument[1])
        case "CATEGORY":
            return _is_category(str(argument), character)
        case "IN":
            negated = str(argument[0][0]) == "NEGATE"
            chosen = argument[1:] if negated else argument
            return any(_is_one(str(op), item, character) for op, item in chosen) is not negated
    raise ValueError(f"{operation} is not followed here")


def _is_category(category: str, character: str) -> bool:
    kinds = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
    name = category.removeprefix("CATEGORY_")
    kind = kinds[name.removeprefix("NOT_")]
    return (re.fullmatch(kind, character) is not None) is not name.startswith("NOT_")

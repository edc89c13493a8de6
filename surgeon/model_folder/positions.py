"""Rules that make what a layer is depend on its number: every sixth, all from the third on.

A rule is a list, as the data of architectures holds it:

- `["cycle", [0, 0, 1]]`: every third layer
- `["every", period, shift, rest]`: `(number + shift) % period == rest`
- `["below", n]`, `["from_end", n]`: `number < n`, `number >= layers - n`
- `["in", path]`: the number is in a list of the config
- `["not", rule]`, `["and", rule, rule]`, `["or", rule, rule]`, `["all"]`, `["last"]`
- `["when", path, rule, rule]`: the first where the config's value is true or not 0, else the second

Numbers are integers, or paths of the config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Lookup = Callable[[str], Any]


class UnknownRuleError(ValueError):
    """A rule that cannot be evaluated: a number that it is about is missing."""


def holds(rule: list[Any], number: int, layers: int, look_up: Lookup) -> bool:
    """Return whether a rule holds of the layer of this number, of so many layers."""

    def whole(word: Any) -> int:
        found = look_up(word) if isinstance(word, str) else word
        if type(found) is not int:
            raise UnknownRuleError(f"{word} is no integer")
        return found

    match rule:
        case ["all"]:
            return True
        case ["last"]:
            return number == layers - 1
        case ["cycle", [*pattern]]:
            return bool(pattern[number % len(pattern)])
        case ["every", period, shift, rest]:
            if (length := whole(period)) <= 0:
                raise UnknownRuleError(f"{period} is {length}")
            return (number + whole(shift)) % length == whole(rest)
        case ["below", limit]:
            return number < whole(limit)
        case ["from_end", count]:
            return number >= layers - whole(count)
        case ["in", path]:
            entries = look_up(path)
            if not isinstance(entries, list):
                raise UnknownRuleError(f"{path} is no list")
            return number in entries
        case ["not", inner]:
            return not holds(inner, number, layers, look_up)
        case ["and", one, other]:
            return holds(one, number, layers, look_up) and holds(other, number, layers, look_up)
        case ["or", one, other]:
            return holds(one, number, layers, look_up) or holds(other, number, layers, look_up)
        case ["when", path, one, other]:
            return holds(one if look_up(path) else other, number, layers, look_up)
    raise UnknownRuleError(f"{rule} is no rule")

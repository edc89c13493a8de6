"""Which variables of a recipe a search varies, and among which values."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.base.errors import UsageError, did_you_mean
from surgeon.base.strict_json import parse_json

# What `vary` takes in the library: the text of the command line, two ends, or a list of choices.
Values = str | tuple[float, float] | Sequence[Any]

_GRAMMAR = "give LOW:HIGH, LOW:HIGH:STEP, LOW:HIGH:int, LOW:HIGH:log, or a JSON list of choices"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones, in steps, or on a log scale."""

    low: float
    high: float
    step: float | None = None
    is_whole: bool = False
    is_log: bool = False

    def holds(self, value: Any) -> bool:
        """Say whether a value is one of these numbers."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not self.low <= value <= self.high or (self.is_whole and value != int(value)):
            return False
        return not self.step or _is_whole((value - self.low) / self.step)

    def middle(self) -> float:
        """Return a number of the range that is near its middle."""
        middle = math.sqrt(self.low * self.high) if self.is_log else (self.low + self.high) / 2
        if self.step:
            middle = self.low + round((middle - self.low) / self.step) * self.step
        return round(middle) if self.is_whole else middle

    def __str__(self) -> str:
        ends = [f"{self.low:g}", f"{self.high:g}", *([f"{self.step:g}"] if self.step else ())]
        return ":".join([*ends, *["int"] * self.is_whole, *["log"] * self.is_log])


@dataclass(frozen=True)
class Choice:
    """One of several values of JSON."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Say whether a value is one of these."""
        return any(value == own and type(value) is type(own) for own in self.values)

    def middle(self) -> Any:
        """Return the first value."""
        return self.values[0]


@dataclass(frozen=True)
class Varied:
    """One number or choice that trials set: a variable, or an item of one."""

    path: tuple[str | int, ...]
    among: Range | Choice

    @property
    def label(self) -> str:
        return ".".join(map(str, self.path))


def parse(name: str, values: Values) -> Range | Choice:
    """Return what the values of a variable are to be among; raises UsageError."""
    try:
        if isinstance(values, str):
            text = values.strip()
            found = _choice(_json(text)) if text.startswith("[") else _range(text)
        elif isinstance(values, tuple) and len(values) == 2:
            found = _checked(Range(_number(values[0]), _number(values[1])))
        else:
            found = _choice(values)
    except ValueError as error:
        raise UsageError(f"vary {name}={values}: {error}") from None
    return found


def _json(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except ValueError as error:
        raise ValueError(f"is not a JSON list: {error}") from None


def _choice(values: Any) -> Choice:
    found = Choice(tuple(values))
    distinct = [v for i, v in enumerate(found.values) if not Choice(found.values[:i]).holds(v)]
    if len(distinct) < 2 or len(distinct) < len(found.values):
        raise ValueError("give two different choices or more")
    return found


def _range(text: str) -> Range:
    low, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(_GRAMMAR)
    high, *words = rest.split(":")
    steps = [word for word in words if word not in ("int", "log")]
    if len(steps) > 1 or len(set(words)) < len(words):
        raise ValueError(_GRAMMAR)
    step = _number(steps[0]) if steps else None
    return _checked(Range(_number(low), _number(high), step, "int" in words, "log" in words))


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"'{value}' is not a number; {_GRAMMAR}") from None
    if not math.isfinite(number):
        raise ValueError(f"'{value}' is not finite")
    return number


def _is_whole(steps: float) -> bool:
    return abs(steps - round(steps)) < 1e-9


def _checked(found: Range) -> Range:
    ends = [found.low, found.high, *([found.step] if found.step is not None else ())]
    if found.low >= found.high:
        raise ValueError(f"{found.low:g} is not less than {found.high:g}")
    if found.step is not None and not 0 < found.step <= found.high - found.low:
        raise ValueError(f"a step of {found.step:g} leaves one value")
    if found.step and not _is_whole((found.high - found.low) / found.step):
        raise ValueError(f"{found.high:g} is no whole number of steps of {found.step:g} away")
    if found.is_whole and any(end != int(end) for end in ends):
        raise ValueError("int is for whole numbers")
    if found.is_log and (found.low <= 0 or found.step is not None):
        raise ValueError("log is for numbers above 0, without a step")
    return found


def expand(vary: Mapping[str, Values], variables: Mapping[str, Any], label: str) -> list[Varied]:
    """Return what is varied, item by item; raises UsageError for what the recipe has no place for.

    `NAME` is a variable; `NAME.0` and `NAME.key` an item of one, `NAME.*` each of its items.
    """
    if not vary:
        raise UsageError("vary: give a variable and its values, such as t=0:1")
    found: dict[str, Varied] = {}
    for name, values in vary.items():
        among = parse(name, values)
        for path in _paths(name, variables, label):
            one = Varied(path, among)
            if any(path[: len(p)] == p[: len(path)] for p in (v.path for v in found.values())):
                raise UsageError(f"vary {name}: '{one.label}' is varied already")
            found[one.label] = one
    return list(found.values())


def _paths(name: str, variables: Mapping[str, Any], label: str) -> Iterator[tuple[str | int, ...]]:
    first, *keys = name.split(".")
    if first not in variables:
        known = did_you_mean(first, variables) or f"; it declares {', '.join(variables) or 'none'}"
        raise UsageError(f"vary {name}: {label} declares no variable '{first}'{known}")
    pending: list[tuple[tuple[str | int, ...], Any]] = [((first,), variables[first])]
    for key in keys:
        pending = [
            ((*path, item), value[item])
            for path, value in pending
            for item in _items(name, key, value)
        ]
    yield from (path for path, _ in pending)


def _items(name: str, key: str, value: Any) -> list[str | int]:
    known: list[Any] = []
    if isinstance(value, list):
        known = list(range(len(value)))
        key_or_index: str | int = int(key) if key.isdecimal() else key
    elif isinstance(value, dict):
        known, key_or_index = list(value), key
    if key == "*" and known:
        return known
    if not known:
        first = name.partition(".")[0]
        raise UsageError(
            f"vary {name}: the variable has no items, so that how many there are is not known; "
            f"give it as many as it is to have, such as --set {first}=[1,1,1]"
        )
    if key_or_index not in known:
        raise UsageError(f"vary {name}: there is no item '{key}'; there are {known}")
    return [key_or_index]


def own_value(varied: Varied, variables: Mapping[str, Any]) -> Any:
    """Return the value that the recipe itself gives, None where it is none of those varied."""
    value: Any = variables
    for key in varied.path:
        value = value[key]
    return value if varied.among.holds(value) else None


def with_values(
    variables: Mapping[str, Any], several: Sequence[Varied], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return variables with values, by the labels of what is varied, in their places."""
    made = copy.deepcopy(dict(variables))
    for varied in several:
        holder: Any = made
        for key in varied.path[:-1]:
            holder = holder[key]
        holder[varied.path[-1]] = values[varied.label]
    return made

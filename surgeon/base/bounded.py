"""Regular expressions matched in time that grows with text and pattern, whatever these are.

Python's engine does it where few ways of matching can be told from the pattern (see `regex_cost`),
which is nearly always and fast. Elsewhere its own order of trials is followed here, but no place of
the pattern is tried twice at one place of the text: the same answers and captures, in at most as
many steps as there are such pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from surgeon.base.regex_cost import PARSER, Cost, Powers, cost_of, is_one, may_be_empty, sizes_of

# Of Python's engine for one text: less than a millisecond.
_MOST_STEPS = 30_000
# Of the program that a pattern becomes, and of pairs of places; a pair takes 0.2 us.
_LONGEST_PROGRAM = 2_000
_MOST_PAIRS = 20_000_000
# Of patterns that come with data, which have reasons for less.
LONGEST_FOREIGN = 2_000
_LONGEST_FOREIGN_PROGRAM = 300
# Sizes of texts: of one without which a pattern is of no use, and of a name that is not unusual.
_SHORT: Powers = (2, 2, 2)
_USUAL: Powers = (100, 12, 40)
_FOLLOWED_FLAGS = re.UNICODE | re.DOTALL | re.VERBOSE


class Found(Protocol):
    """A match: what groups with names have captured."""

    def groupdict(self) -> dict[str, Any]:
        """Return what each group has captured, None where it took no part."""


Fullmatch = Callable[[str], Found | None]


class TakesTooLongError(ValueError):
    """A pattern, or a text for it, of which nobody can say that matching ends in good time."""


@lru_cache(maxsize=16_384)
def compiled(pattern: str, flags: int = 0) -> Fullmatch:
    """Return what matches all of a text; raises ValueError for a pattern that cannot be bounded.

    So does what is returned, for a text that is too long for the pattern.
    """
    parsed, cost = _parsed(pattern, flags)
    fast = re.compile(pattern, flags).fullmatch
    if cost.is_linear and _takes_lines(parsed):
        return fast
    try:
        slow: _Program | ValueError = _Program(parsed)
    except ValueError as error:
        if not cost.is_linear and cost.steps(_SHORT) > _MOST_STEPS:
            raise TakesTooLongError(f"takes too long to match, and {error}") from None
        slow = error
    return _either(fast, slow, cost)


def fullmatch(pattern: str, text: str) -> bool:
    """Say whether a pattern that came with data matches all of a text.

    Raises ValueError for one that is not followed here, or takes too long.
    """
    return _foreign(pattern)(text) is not None


@lru_cache(maxsize=16_384)
def _foreign(pattern: str) -> Fullmatch:
    if len(pattern) > LONGEST_FOREIGN:
        raise ValueError(f"longer than {LONGEST_FOREIGN} characters")
    parsed, cost = _parsed(pattern, 0)
    if cost.steps(_USUAL) > _MOST_STEPS and len(_Program(parsed)) > _LONGEST_FOREIGN_PROGRAM:
        raise TakesTooLongError("takes too long to match")
    return compiled(pattern)


def _parsed(pattern: str, flags: int) -> tuple[Any, Cost]:
    try:
        parsed = PARSER.parse(pattern, flags)
        return parsed, cost_of(parsed)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _takes_lines(parsed: Any) -> bool:
    """Say whether a dot takes a newline: else what ends in one may be tried again and again."""
    return bool(parsed.state.flags & re.DOTALL) or "ANY" not in str(list(parsed))


def _either(fast: Fullmatch, slow: _Program | ValueError, cost: Cost) -> Fullmatch:
    """Return what takes Python's engine for texts that are short enough for it."""
    short: dict[Powers, bool] = {}
    lines = cost.of_lines()

    def match(text: str) -> Found | None:
        sizes = sizes_of(text)
        if sizes not in short:
            short[sizes] = cost.steps(sizes) <= _MOST_STEPS
        is_short = short[sizes] or cost.is_linear
        if is_short and ("\n" not in text or lines.steps(sizes) <= _MOST_STEPS):
            return fast(text)
        length = len(text)
        if isinstance(slow, ValueError):
            raise TakesTooLongError(f"{_too_long(length)}, and {slow}")
        return slow.fullmatch(text)

    return match


def _too_long(length: int) -> str:
    return f"takes too long to match a name of {length:,} characters"


class _Captured:
    def __init__(self, groups: dict[str, Any]) -> None:
        self._groups = groups

    def groupdict(self) -> dict[str, Any]:
        return self._groups


class _Characters(dict[str, bool]):
    """Whether a character is of a set, for each that was looked at."""

    def __init__(self, operation: str, argument: Any, takes_lines: bool) -> None:
        super().__init__({} if takes_lines or operation != "ANY" else {"\n": False})
        self._set = operation, argument

    def __missing__(self, character: str) -> bool:
        found = self[character] = is_one(*self._set, character)
        return found


_CHARACTERS, _SPLIT, _JUMP, _SAVE, _AT, _END = range(6)


class _Program:
    """A pattern as instructions: kind, what it is about, and where to go on otherwise."""

    def __init__(self, parsed: Any) -> None:
        if parsed.state.flags & ~_FOLLOWED_FLAGS:
            raise ValueError("it has flags of its own")
        self._takes_lines = bool(parsed.state.flags & re.DOTALL)
        self._kinds: list[int] = []
        self._abouts: list[Any] = []
        self._elses: list[int] = []
        self._slots = {number: 2 * i for i, number in enumerate(parsed.state.groupdict.values())}
        self._names = {name: self._slots[n] for name, n in parsed.state.groupdict.items()}
        self._sequence(list(parsed))
        self._add(_END)
        # What no match can be without: looked for first, which takes next to no time.
        self._needed = _needed(list(parsed))

    def __len__(self) -> int:
        return len(self._kinds)

    def _add(self, kind: int, about: Any = None) -> int:
        if len(self._kinds) >= _LONGEST_PROGRAM:
            raise ValueError("it repeats too much")
        self._kinds.append(kind)
        self._abouts.append(about)
        self._elses.append(0)
        return len(self._kinds) - 1

    def _sequence(self, items: Sequence[Any]) -> None:
        for operation, argument in items:
            self._item(str(operation), argument)

    def _item(self, operation: str, argument: Any) -> None:
        match operation:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                self._add(_CHARACTERS, _Characters(operation, argument, self._takes_lines))
            case "AT":
                self._add(_AT, _places(str(argument)))
            case "SUBPATTERN":
                self._group(*argument)
            case "BRANCH":
                self._branch(argument[1])
            case "MAX_REPEAT" | "MIN_REPEAT":
                self._repeat(*argument, is_lazy=operation == "MIN_REPEAT")
            case _:
                raise ValueError(f"{operation.lower()} is followed for simpler patterns alone")

    def _group(self, number: int | None, added: int, removed: int, body: Any) -> None:
        if added or removed:
            raise ValueError("it has flags of its own")
        slot = self._slots.get(number or 0)
        if slot is not None:
            self._add(_SAVE, slot)
        self._sequence(list(body))
        if slot is not None:
            self._add(_SAVE, slot + 1)

    def _branch(self, branches: Sequence[Any]) -> None:
        jumps = []
        for branch in branches[:-1]:
            split = self._add(_SPLIT)
            self._sequence(list(branch))
            jumps.append(self._add(_JUMP))
            self._elses[split] = len(self)
        self._sequence(list(branches[-1]))
        for jump in jumps:
            self._elses[jump] = len(self)

    def _repeat(self, least: int, most: Any, body: Any, *, is_lazy: bool) -> None:
        items = list(body)
        if self._slots and int(most) > 1 and may_be_empty(items):
            # Here Python has rules of its own for what a group is left with.
            raise ValueError("it captures beside what repeats nothing")
        for _ in range(least):
            self._sequence(items)
        if most == PARSER.MAXREPEAT:
            split = self._add(_SPLIT, is_lazy)
            self._sequence(items)
            self._elses[self._add(_JUMP)] = split
            self._elses[split] = len(self)
            return
        splits = []
        for _ in range(int(most) - least):
            splits.append(self._add(_SPLIT, is_lazy))
            self._sequence(items)
        for split in splits:
            self._elses[split] = len(self)

    def fullmatch(self, text: str) -> Found | None:
        """Return the match that Python's engine would find, None where there is none."""
        if not all(part in text for part in self._needed):
            return None
        length = len(text)
        width = length + 1
        if len(self) * width > _MOST_PAIRS:
            raise TakesTooLongError(_too_long(length))
        kinds, abouts, elses = self._kinds, self._abouts, self._elses
        tried = bytearray(len(kinds) * width)
        saved: list[int | None] = [None] * (2 * len(self._slots))
        # What is left to try: an instruction and a place; or what a slot held before, to undo.
        pending: list[tuple[int, Any]] = [(0, 0)]
        while pending:
            step, place = pending.pop()
            if step < 0:
                saved[-1 - step] = place
                continue
            while not tried[step * width + place]:
                tried[step * width + place] = 1
                kind = kinds[step]
                if kind == _CHARACTERS:
                    if place == length or not abouts[step][text[place]]:
                        break
                    place += 1
                elif kind == _SPLIT:
                    first, second = step + 1, elses[step]
                    if abouts[step]:
                        first, second = second, first
                    pending.append((second, place))
                    step = first
                    continue
                elif kind == _JUMP:
                    step = elses[step]
                    continue
                elif kind == _SAVE:
                    slot = abouts[step]
                    pending.append((-1 - slot, saved[slot]))
                    saved[slot] = place
                elif kind == _AT:
                    if not abouts[step](text, place):
                        break
                elif place == length:
                    return self._captured(text, saved)
                else:
                    break
                step += 1
        return None

    def _captured(self, text: str, saved: Sequence[int | None]) -> Found:
        groups = {}
        for name, slot in self._names.items():
            start, stop = saved[slot], saved[slot + 1]
            groups[name] = None if start is None or stop is None else text[start:stop]
        return _Captured(groups)


def _needed(items: Sequence[Any]) -> list[str]:
    """Return the texts that every match has in it."""
    texts = [""]
    for operation, argument in items:
        if str(operation) == "LITERAL":
            texts[-1] += chr(argument)
        elif str(operation) != "AT":
            texts.append("")
    return [text for text in texts if text]


def _places(argument: str) -> Callable[[str, int], bool]:
    match argument:
        case "AT_BEGINNING" | "AT_BEGINNING_STRING":
            return lambda text, place: place == 0
        case "AT_END":
            return lambda text, place: text[place : place + 2] in ("", "\n")
        case "AT_END_STRING":
            return lambda text, place: place == len(text)
    raise ValueError(f"{argument.lower()} is followed for simpler patterns alone")

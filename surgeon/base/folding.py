"""One row for numbered layers that fare alike: `layers.{0-31}.mlp.up_proj.weight`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

Row = tuple[str, ...]
# Longer ones are no numbers of layers.
_LONGEST_NUMBER = 10
_HERE = "{}"
# No model is nested as deeply; names may be.
_DEEPEST = 32


def ranges(numbers: Sequence[int]) -> str:
    """Return `0-3,7` for 0, 1, 2, 3 and 7, in rising order."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


@dataclass
class _Group:
    numbers: list[int]
    rows: list[Row]


def folded(
    rows: Iterable[Row], between: Collection[int] = (), within: Collection[int] = ()
) -> list[Row]:
    """Return rows, one for those that differ in one number of the dotted name in their first cell.

    The other cells must be alike but for that number where they name tensors of the same layer.
    Cells at the places `between` hold figures, which may differ: the lowest and highest are shown.
    So may the fractions in brackets of cells `within`: `(weights [1.0, 0.5..1.0])`.
    """
    found = list(rows)
    numbered = {
        place
        for row in found
        for place, part in enumerate(row[0].split(".", _DEEPEST + 1)[: _DEEPEST + 1])
        if part[:1].isdecimal()
    }
    for place in sorted(numbered, reverse=True):  # the innermost first: experts, then layers
        groups: dict[tuple[object, ...], _Group] = {}
        for index, row in enumerate(found):
            number = _number_at(row[0], place)
            key = (index,) if number is None else _alike(row, place, number, between, within)
            group = groups.setdefault(key, _Group([], []))
            group.rows.append(row)
            group.numbers.append(int(number or 0))
        found = [_one(group, place, between, within) for group in groups.values()]
    return found


def _number_at(name: str, place: int) -> str | None:
    parts = name.split(".", place + 1)
    if place >= len(parts):
        return None
    part = parts[place]
    is_number = part.isascii() and part.isdecimal() and len(part) < _LONGEST_NUMBER
    return part if is_number and str(int(part)) == part else None


def _alike(
    row: Row, place: int, number: str, between: Collection[int], within: Collection[int]
) -> tuple[object, ...]:
    """Return what rows that fold into one have in common."""
    cells = []
    for index, cell in enumerate(row[1:], start=1):
        words = _FRACTION.sub(_FIGURE, cell) if index in within else cell
        cells.append(bool(cell) if index in between else _relative(words, row[0], place, number))
    return (_with(row[0], place, _HERE), *cells)


_PLAIN = r"-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)"
# A number of parameters in words, with a point or an exponent, or a span of such.
_FRACTION = re.compile(rf"(?<=[ \[(]){_PLAIN}(?:\.\.{_PLAIN})?(?=[,\])])")
# Stands for one, where words are compared; no name has it.
_FIGURE = "\0"


def _relative(cell: str, name: str, place: int, number: str) -> str:
    """Say of the layers in a cell how far they are from the row's own: `{+0}` is that."""
    before, after = _with(name, place, _HERE).split(_HERE, 1)
    if before not in cell or after not in cell:
        return _elsewhere(number).sub("{+0}", cell) if "." in cell else cell
    before, after = re.escape(before), re.escape(after)
    same_place = re.compile(rf"(?<![\w.]){before}(\d{{1,{_LONGEST_NUMBER}}}){after}(?![\w.])")
    text = same_place.sub(
        lambda found: _with(name, place, f"{{{int(found[1]) - int(number):+d}}}"), cell
    )
    return _elsewhere(number).sub("{+0}", text)


def _elsewhere(number: str) -> re.Pattern[str]:
    """Return what finds a layer's number in dotted names, and not in fractions."""
    return re.compile(rf"(?:(?<![0-9]\.)(?<=\.)|(?<![\w.])(?=\d+\.[A-Za-z_])){number}(?!\w)")


def _with(name: str, place: int, text: str) -> str:
    parts = name.split(".", place + 1)
    parts[place] = text
    return ".".join(parts)


def _one(group: _Group, place: int, between: Collection[int], within: Collection[int]) -> Row:
    first = group.rows[0]
    if len(group.rows) == 1:
        return first
    numbers, number = sorted(group.numbers), str(group.numbers[0])
    cells = []
    for index, cell in enumerate(first[1:], start=1):
        if index in between:
            cells.append(_span([row[index] for row in group.rows]))
        else:
            words = _FRACTION.sub(_FIGURE, cell) if index in within else cell
            relative = _relative(words, first[0], place, number)
            text = _OFFSET.sub(lambda by: _set([n + int(by[1]) for n in numbers]), relative)
            if index in within:
                text = _filled(text, [row[index] for row in group.rows])
            cells.append(text)
    return (_with(first[0], place, _set(numbers)), *cells)


_OFFSET = re.compile(r"\{([+-]\d+)\}")


def _set(numbers: Sequence[int]) -> str:
    return f"{{{ranges(numbers)}}}"


def _filled(text: str, cells: Sequence[str]) -> str:
    """Return words with the span of each figure that the cells have there."""
    figures = zip(*(_FRACTION.findall(cell) for cell in cells), strict=True)
    spans = ("..".join(map(_short, _span(places).split(".."))) for places in figures)
    return "".join(next(spans) if part == _FIGURE else part for part in re.split("(\0)", text))


def _span(cells: Sequence[str]) -> str:
    """Return `lowest..highest` of figures, which may be spans themselves."""
    ends = [end for cell in cells for end in cell.split("..") if end]
    if not ends:
        return ""
    low, high = (choose(ends, key=_value) for choose in (min, max))
    return low if low == high else f"{low}..{high}"


def _value(figure: str) -> float:
    return float(figure.replace(",", "").removesuffix("%"))


def _short(figure: str) -> str:
    """Return four digits of a fraction, which it stays for what folds it once more."""
    text = figure if len(figure) <= _SHORT else f"{float(figure):.4g}"
    return text if set(text) & {".", "e"} else f"{text}.0"


_SHORT = 8
_RUN = r"[0-9]+(?:-[0-9]+)?"


def times(name: str) -> int:
    """Return how many names a folded one stands for."""
    count = 1
    for inside in re.findall(rf"\{{({_RUN}(?:,{_RUN})*)\}}", name):
        runs = [[int(end) for end in run.split("-")] for run in inside.split(",")]
        count *= sum(run[-1] - run[0] + 1 for run in runs)
    return count

"""Text in columns, and what its cells say."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from surgeon.base.screen import screen


def shown(text: str) -> str:
    """Return a line that may hold text of a file so that it cannot steer a terminal.

    What does not print is escaped as in Python: control characters (newlines too), directions of
    writing, what has no width, halves of surrogate pairs.
    """
    return text if text.isprintable() else text.translate(_escapes(text))


def shown_lines(text: str) -> str:
    """Return the same of several lines: newlines stay."""
    escapes = _escapes(text)
    escapes.pop(ord("\n"), None)
    return text.translate(escapes) if escapes else text


def _escapes(text: str) -> dict[int, str]:
    odd = [character for character in set(text) if not character.isprintable()]
    return {ord(character): character.encode("unicode_escape").decode() for character in odd}


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str] = (),
    *,
    indent: int = 0,
) -> str:
    """Return rows under headers, in columns; columns in which all cells are empty are left out.

    Columns in `right` are aligned there. On a terminal, the widest columns are folded until all of
    them fit beside each other.
    """
    from tabulate import tabulate  # where there is a table to print: it takes as long as a header

    cells = [row if "".join(row).isprintable() else [shown(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(headers)) if not cells or any(row[i] for row in cells)]
    # The headers as a first row, since tabulate pads those of its own.
    lines = [[row[i] for i in kept] for row in [headers, *cells]]
    if columns := screen().columns:
        firm = {place for place, i in enumerate(kept) if headers[i] in right}
        lines = _fitted(lines, columns - indent, firm)
    text = tabulate(
        lines,
        tablefmt="plain",
        colalign=["right" if headers[i] in right else "left" for i in kept],
        disable_numparse=True,
        preserve_whitespace=True,
    )
    if screen().columns:  # where a cell ends above one that is folded
        text = "\n".join(line.rstrip() for line in text.splitlines())
    return indented(text, indent) if indent else text


_GAP = 2
# No column is folded to less; what does not fit then is for the terminal to break.
_NARROWEST = 10


def _fitted(rows: Sequence[Sequence[str]], columns: int, firm: Collection[int]) -> list[list[str]]:
    """Fold the cells of the widest columns so that a row fits; of numbers, headers and spans alone.

    The first row are headers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def over() -> int:
        return sum(widths) + _GAP * (len(widths) - 1) - columns

    def width_of_words(place: int, end: str) -> int:
        header, *figures = (row[place] for row in rows)
        words = [*header.split(), *"\n".join(figures).replace(end, f"{end}\n").splitlines()]
        return max(map(len, words), default=0)

    if over() > 0:
        for place in firm:
            widths[place] = width_of_words(place, "\n")
    able = [i for i, width in enumerate(widths) if i not in firm and width > _NARROWEST]
    for _ in range(max(over(), 0)):
        if able:
            widest = max(able, key=lambda i: widths[i])
            widths[widest] -= 1
            able = [i for i in able if widths[i] > _NARROWEST]
    for place in sorted(firm, key=lambda i: -widths[i]):
        if over() > 0:
            widths[place] = width_of_words(place, _TO)
    return [
        [
            _folded_span(cell, width) if place in firm and line else folded_text(cell, width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for line, row in enumerate(rows)
    ]


_TO = ".."


def _folded_span(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell.replace(_TO, f"{_TO}\n")


# Where a line may end besides spaces: after what parts names, paths and lists.
_BREAKS = ".,/_-:;|"


def folded_text(text: str, width: int) -> str:
    """Return one line as several of at most so many columns; what follows keeps its indent."""
    lead = text[: len(text) - len(text.lstrip(" "))]
    lines = []
    while len(text) > width:
        space = text.rfind(" ", len(lead) + 1, width + 1)
        mark = max(text.rfind(sign, len(lead) + width // 3, width) for sign in _BREAKS) + 1
        cut = space if space > len(lead) else mark if mark > len(lead) else width
        lines.append(text[:cut].rstrip(" "))
        text = lead + text[cut:].lstrip(" ") if len(lead) < width // 2 else text[cut:].lstrip(" ")
    return "\n".join([*lines, text])


def wrapped(text: str, *, indent: int = 0) -> str:
    """Return a line, on a terminal as several that end between words; further ones keep `indent`.

    What has no room is longer, so that an address or a name is in one piece.
    """
    if not (columns := screen().columns):
        return text
    from textwrap import fill

    return fill(text, columns, subsequent_indent=" " * indent, break_long_words=False,
                break_on_hyphens=False)  # fmt: skip


def indented(text: str, by: int = 2) -> str:
    """Return text with every line moved to the right."""
    return "\n".join(f"{' ' * by}{line}" for line in text.splitlines())


def number(value: float | None) -> str:
    """Return four digits of a number, nothing for none."""
    return "" if value is None else f"{value:.4g}"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as a tuple is written."""
    return str(tuple(shape))


def plural(count: int, noun: str) -> str:
    """Return `1 tensor` or `12,345 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def json_text(document: Any, *, indent: int | None = None) -> str:
    """Return JSON whose strings hold nothing that could steer a terminal, `\\u` escapes instead.

    On one line unless asked otherwise: indenting takes json's slow path, 6 s for 100 000 tensors.
    """
    # Our documents are trees, which takes less time not to look for circles in.
    text = json.dumps(
        document, ensure_ascii=False, allow_nan=False, check_circular=False, indent=indent
    )
    # Of ASCII json leaves one character as it is that is not printable, which is found at once.
    if indent is None and text.isascii() and "\x7f" not in text:
        return text
    if text.isprintable():
        return text
    # Newlines that are left are between values; json escapes those in strings.
    odd = [
        character for character in set(text) if not (character.isprintable() or character == "\n")
    ]
    return text.translate({ord(c): json.dumps(c)[1:-1] for c in odd})

"""Text in columns, and what its cells say."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def shown(text: str) -> str:
    """Return text of a file so that it cannot steer a terminal: no control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()
) -> str:
    """Return rows under headers, in columns; columns in which all cells are empty are left out.

    Columns in `right` are aligned there.
    """
    from tabulate import tabulate  # where there is a table to print: it takes as long as a header

    cells = [row if "".join(row).isprintable() else [shown(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(headers)) if not cells or any(row[i] for row in cells)]
    # The headers as a first row, since tabulate pads those of its own.
    return tabulate(
        [[row[i] for i in kept] for row in [headers, *cells]],
        tablefmt="plain",
        colalign=["right" if headers[i] in right else "left" for i in kept],
        disable_numparse=True,
        preserve_whitespace=True,
    )


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


def json_text(document: Any) -> str:
    """Return JSON on one line: indenting takes json's slow path, 6 s for 100 000 tensors."""
    # Our documents are trees, which takes less time not to look for circles in.
    return json.dumps(document, ensure_ascii=False, allow_nan=False, check_circular=False)

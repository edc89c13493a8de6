"""What the training side prints: columns of plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """Return rows under headers; numbers stand at the right of their column, `left` is words.

    Columns in which all cells are empty are left out.
    """
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in [headers, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [headers[i] in left for i in kept]
    lines = (
        "  ".join(
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, words, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)

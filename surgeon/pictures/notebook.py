"""What notebooks show of answers: tables and parts of the report's page, all text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgeon.base.folding import folded
from surgeon.base.tables import number, plural, shape_text
from surgeon.base.units import spoken_size
from surgeon.pictures.markup import Markup, fragment, table, tag

# More rows are not looked at in a notebook; the answer itself has them all.
_MOST_ROWS = 200


def rows_shown(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (),
    *, notes: Sequence[str] = (),
) -> str:  # fmt: skip
    """Return a table under a title; what is too long for a notebook is cut off, and said."""
    return fragment(tag("p", {}, tag("b", {}, title)), _table(headers, rows, right), _noted(notes))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Markup:
    named = [(tag("span", {"class": "name"}, row[0]), *row[1:]) for row in rows[:_MOST_ROWS]]
    more = len(rows) - _MOST_ROWS
    rest = tag("p", {"class": "note"}, f"and {more:,} more rows") if more > 0 else Markup()
    shown = table(headers, named, right) if rows else Markup()
    return tag("div", {"class": "wide-part"}, shown, rest)


def _noted(notes: Sequence[str]) -> Markup:
    return Markup("".join(tag("p", {"class": "note"}, f"note: {note}") for note in notes))


def inspected(document: Mapping[str, Any]) -> str:
    """Return the tensors of a checkpoint, those of layers that are alike once, and totals."""
    rows = [
        (name, row["dtype"], shape_text(row["shape"]), spoken_size(row["bytes"]),
         row.get("tied_to", ""), *_statistics(row.get("stats")))
        for name, row in document["tensors"].items()
    ]  # fmt: skip
    headers = ("name", "dtype", "shape", "size", "tied to", *_STATISTICS)
    totals = [
        (dtype, f"{row['tensors']:,}", f"{row['elements']:,}", spoken_size(row["bytes"]))
        for dtype, row in document["totals"].items()
    ]
    # The shape is one word, which is not to be broken.
    found = [(name, dtype, tag("span", {"class": "name"}, shape), *others) for
             name, dtype, shape, *others in folded(rows, between=range(5, 10))]  # fmt: skip
    size = f"{spoken_size(document['bytes'])}, {plural(len(rows), 'tensor')}"
    return fragment(
        tag("p", {}, tag("b", {}, document["file"]), f" {size}"),
        table(("dtype", "tensors", "elements", "size"), totals,
              right=("tensors", "elements", "size")),
        _table(headers, found, ("size", *_STATISTICS)),
        _noted(document["notes"]),
    )  # fmt: skip


_STATISTICS = ("min", "max", "mean", "std", "norm")


def _statistics(found: Mapping[str, Any] | None) -> Iterable[str]:
    keys = ("minimum", "maximum", "mean", "std", "norm")
    return ["" if found is None else number(found[key]) for key in keys]


def applied(document: Mapping[str, Any]) -> str:
    """Return what was written, and what each step did."""
    files = [(row["file"], spoken_size(row["bytes"])) for row in document["files"]]
    kinds = ("copied", "computed", "linked")
    sizes = [f"{spoken_size(document[f'{kind}_bytes'])} {kind}" for kind in kinds
             if document[f"{kind}_bytes"]]  # fmt: skip
    steps = [
        (
            step["step"],
            step["op"],
            *(f"{len(step[key]):,}" if step[key] else "" for key in _COUNTED),
        )
        for step in document["steps"]
    ]
    return fragment(
        tag("p", {}, tag("b", {}, str(document["output"])),
            f" {plural(document['tensors'], 'tensor')}; {', '.join(sizes)}"),
        table(("step", "op", *_COUNTED), steps, right=_COUNTED),
        table(("file", "size"), files, right=("size",)),
        tag("p", {}, f"manifest {document['manifest']}"),
        _noted(document["notes"]),
    )  # fmt: skip


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


_COUNTED = ("added", "changed", "removed")

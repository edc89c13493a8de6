"""What compare and diff found as heat maps: layers × modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from surgeon.inspection.layers import columns, depth, layer_and_module, layer_and_tensor
from surgeon.inspection.products import Figures
from surgeon.numeric.dtypes import Array
from surgeon.pictures.figures import letters, named
from surgeon.pictures.heat import Heat, Mark, Panel

# As many panels as can be told apart.
_MOST_DISTANCES = 12
_MOST_PAIRS = 6
# What a cell says that several tensors share.
_FIRST: Sequence[Mark] = ("reshaped", "only in one", "no ratio", "unchanged")
Cell = tuple[int, int]
Marks = dict[Cell, Mark]
Placing = Callable[[str], tuple[str, str]]


class _Grid:
    """The rows and columns of a picture, and in which cell a layer's module is."""

    def __init__(self, places: Iterable[tuple[str, str]]) -> None:
        found = [*places]
        column = columns(module for _, module in found)
        # The order of the layers is that of what lies in them.
        layers = dict.fromkeys(layer for layer, _ in found)
        self.rows = sorted(layers, key=lambda layer: depth(f"{layer}.weight"))
        self.columns = list(dict.fromkeys(column.values()))
        row_at = {layer: index for index, layer in enumerate(self.rows)}
        column_at = {label: index for index, label in enumerate(self.columns)}
        self.cells = {
            (layer, module): (row_at[layer], column_at[column[module]]) for layer, module in found
        }

    def empty(self) -> Array:
        return np.full((len(self.rows), len(self.columns)), np.nan)


def comparison(
    models: Sequence[str],
    layers: Mapping[str, Mapping[str, Figures]],
    left_out: Mapping[str, Mark],
) -> Heat:
    """Return panels of how far each model moved from A, and of whether each two moved alike."""
    there = {(layer, module): f for layer, parts in layers.items() for module, f in parts.items()}
    grid = _Grid([*there, *map(layer_and_module, left_out)])
    cells: dict[Cell, Figures] = {}
    for key, figures in there.items():
        cell = grid.cells[key]
        cells[cell] = cells[cell] + figures if cell in cells else figures
    marks = _marked((grid.cells[layer_and_module(name)], mark) for name, mark in left_out.items())
    # What has a value tells more than that a part of it is left out.
    marks = {cell: mark for cell, mark in marks.items() if cell not in cells}
    names = letters(len(models))
    others = range(1, len(models))
    panels = [
        _distance(f"{names[other]} from A", other, grid, cells, marks)
        for other in others[:_MOST_DISTANCES]
    ]
    pairs = [*combinations(others, 2)]
    if len(pairs) > _MOST_PAIRS:
        panels.append(_cosine("mean of all pairs", [], grid, cells, marks))
    else:
        panels += [
            _cosine(f"{names[i]} and {names[j]}", [(i, j)], grid, cells, marks) for i, j in pairs
        ]
    title = "How far models moved from A" + (", and whether together" if pairs else "")
    lines = named(models)
    if more := len(others) - _MOST_DISTANCES:
        lines += [f"distances of the last {more} are left out"] if more > 0 else []
    return Heat(title, lines, grid.rows, grid.columns, panels)


def _distance(
    title: str, other: int, grid: _Grid, cells: Mapping[Cell, Figures], left_out: Marks
) -> Panel:
    values, marks = grid.empty(), dict(left_out)
    for cell, figures in cells.items():
        relative = figures.relative[other - 1]
        if not figures.products[other, other]:
            marks[cell] = "unchanged"
        elif relative is None:
            marks[cell] = "no ratio"
        else:
            values[cell] = relative
    return Panel(title, "change", values, marks)


def _cosine(
    title: str, pair: Sequence[Cell], grid: _Grid, cells: Mapping[Cell, Figures], left_out: Marks
) -> Panel:
    """Return the cosines of one pair of models, or their mean over all pairs."""
    values, marks = grid.empty(), dict(left_out)
    for cell, figures in cells.items():
        found = [figures.cosines[i - 1][j - 1] for i, j in pair] or [figures.cosine]
        if found[0] is None:
            marks[cell] = "unchanged"  # of one of them, or of both
        else:
            values[cell] = found[0]
    return Panel(title, "cosine", values, marks)


def _marked(found: Iterable[tuple[Cell, Mark]]) -> Marks:
    marks: Marks = {}
    for cell, mark in found:
        if cell not in marks or _FIRST.index(mark) < _FIRST.index(marks[cell]):
            marks[cell] = mark
    return marks


def difference(
    models: Sequence[str], changes: Mapping[str, float | None], marked: Mapping[str, Mark]
) -> Heat:
    """Return a panel of the relative change of each tensor.

    Where a cell is of several tensors, as of many experts, it has the largest.
    """
    grid = _Grid(map(layer_and_tensor, [*changes, *marked]))
    values = grid.empty()
    found = [(grid.cells[layer_and_tensor(name)], mark) for name, mark in marked.items()]
    for name, relative in changes.items():
        cell = grid.cells[layer_and_tensor(name)]
        if relative is None:
            found.append((cell, "no ratio"))
        else:
            values[cell] = np.fmax(values[cell], relative)
    has_value = np.isfinite(values)
    marks = {cell: mark for cell, mark in _marked(found).items()
             if not (has_value[cell] and mark == "unchanged")}  # fmt: skip
    for cell in marks:
        values[cell] = np.nan
    shared = " (the largest in each cell)" if len(grid.cells) > len({*grid.cells.values()}) else ""
    panel = Panel(f"B from A{shared}", "change", values, marks)
    title = "How far each tensor moved" if changes or marked else "Nothing to compare"
    return Heat(title, named(models), grid.rows, grid.columns, [panel])

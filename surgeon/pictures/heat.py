"""Heat maps of layers × modules: one panel for each thing that is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from surgeon.numeric.dtypes import Array
from surgeon.pictures import figures
from surgeon.pictures.markup import shortened

if TYPE_CHECKING:
    from surgeon.pictures.figures import Axes, Figure

Kind = Literal["change", "cosine"]
# Why a cell has no value: nothing is there, or what is there has none.
Mark = Literal["unchanged", "reshaped", "only in one", "no ratio"]
_HATCHES: Mapping[Mark, tuple[str, str]] = {
    "unchanged": ("#ececec", ""),
    "reshaped": ("white", "////"),
    "only in one": ("white", "...."),
    "no ratio": ("white", "xxxx"),
}
_MEANINGS: Mapping[Mark, str] = {
    "unchanged": "unchanged",
    "reshaped": "reshaped: not comparable",
    "only in one": "not in all of them",
    "no ratio": "changed, without a ratio",
}
_KINDS: Sequence[Kind] = ("change", "cosine")
_COLOURS = {"change": "YlGnBu", "cosine": "PuOr_r"}
_CELL_WIDTH, _CELL_HEIGHT = 0.34, 0.2
_MOST_HEIGHT = 14.0
_MOST_LABELS = 72
_LONGEST = 44
_COLUMNS = 3
# In pictures of which no panel has more values, every one has its number.
_FEW_CELLS = 40
# Where the largest is so many times the smallest, colours are logarithmic.
_FAR = 20


@dataclass(frozen=True)
class Panel:
    """What is told of each layer and module; NaN where there is no value.

    `marks` say by (row, column) why there is none, where something is there.
    """

    title: str
    kind: Kind
    values: Array
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class Heat:
    """A picture of several panels over the same layers (rows) and modules (columns)."""

    title: str
    lines: Sequence[str]
    rows: Sequence[str]
    columns: Sequence[str]
    panels: Sequence[Panel]

    def plot(self, path: Path | None = None) -> Figure:
        """Return it as a figure of matplotlib, saved too where there is a path."""
        figure = _drawn(self)
        if path is not None:
            figures.save(figure, path)
        return figure


@figures.figured
def _drawn(heat: Heat) -> Figure:
    lines = _lines(heat.panels)
    across = max((len(line) for line in lines), default=1)
    wide = max(_CELL_WIDTH * len(heat.columns), 1.6)
    tall = min(max(_CELL_HEIGHT * len(heat.rows), 0.8), _MOST_HEIGHT / max(len(lines), 1) + 2)
    labels = 0.075 * max((min(len(row), _LONGEST) for row in heat.rows), default=1)
    under = 0.075 * max((min(len(column), _LONGEST) for column in heat.columns), default=1)
    figure = figures.new(
        labels + across * (wide + 0.3) + 0.9 * len(_KINDS),
        0.5 + 0.18 * (len(heat.lines) + 1) + len(lines) * (tall + 0.55) + under,
    )
    figures.titled(figure, heat.title, heat.lines)
    grid = figure.subplots(max(len(lines), 1), across, squeeze=False)
    for place, line in enumerate(lines):
        images: list[tuple[Axes, Any]] = []
        for axes, panel in zip(grid[place], line, strict=False):
            is_last = place == len(lines) - 1 or len(lines[place + 1]) <= len(images)
            images.append((axes, _panel(axes, heat, panel, heat.panels)))
            _label(axes, heat, left=axes is grid[place][0], below=is_last)
        for axes in grid[place][len(line) :]:
            axes.set_axis_off()
        for kind in _KINDS:
            _colour_bar(figure, [image for image, p in zip(images, line, strict=True)
                                 if p.kind == kind], kind)  # fmt: skip
    _legend(figure, {mark for panel in heat.panels for mark in panel.marks.values()})
    return figure


def _lines(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """Return the panels that stand beside each other: all where there are few, else by kind."""
    if len(panels) <= _COLUMNS:
        return [panels]
    bands = [[panel for panel in panels if panel.kind == kind] for kind in _KINDS]
    return [band[i : i + _COLUMNS] for band in bands for i in range(0, len(band), _COLUMNS)]


def _panel(axes: Axes, heat: Heat, panel: Panel, others: Sequence[Panel]) -> Any:
    from matplotlib.colors import ListedColormap, LogNorm, Normalize
    from matplotlib.patches import Rectangle

    known = [p.values[np.isfinite(p.values)] for p in others if p.kind == panel.kind]
    values = np.concatenate(known) if known else np.zeros(0)
    norm: Normalize
    if panel.kind == "cosine":
        largest = max(float(np.abs(values).max(initial=0)), 0.05)
        limit = next(edge for edge in (0.1, 0.25, 0.5, 1.0, np.inf) if largest <= edge)
        norm = Normalize(-min(limit, 1.0), min(limit, 1.0))
    else:
        low, high = (float(f(values, initial=i)) for f, i in ((np.min, np.inf), (np.max, 0.0)))
        is_far = values.size and low > 0 and high / low > _FAR
        norm = LogNorm(low, high) if is_far else Normalize(0, high or 1.0)
    shape = (len(heat.rows), len(heat.columns))
    image = axes.imshow(
        np.ma.masked_invalid(panel.values), aspect="auto", norm=norm, cmap=_COLOURS[panel.kind],
        interpolation="nearest",
    )  # fmt: skip
    same = [cell for cell, mark in panel.marks.items() if mark == "unchanged"]
    if same:  # as one image: they can be most of all cells
        grey = np.full(shape, np.nan)
        grey[tuple(zip(*same, strict=True))] = 0
        colours = ListedColormap([_HATCHES["unchanged"][0]])
        axes.imshow(np.ma.masked_invalid(grey), aspect="auto", cmap=colours)
    for (row, column), mark in panel.marks.items():
        if mark == "unchanged":
            continue
        colour, hatch = _HATCHES[mark]
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, hatch=hatch,
                                 linewidth=0, gid=f"{mark} {row} {column}"))  # fmt: skip
    axes.set_title(panel.title)
    # Thin white lines part the cells; what is blank is nowhere in the models.
    if shape[0] <= _MOST_LABELS:
        white: Any = {"colors": "white", "linewidth": 0.7}
        axes.hlines(np.arange(0.5, shape[0] - 1), -0.5, shape[1] - 0.5, **white)
        axes.vlines(np.arange(0.5, shape[1] - 1), -0.5, shape[0] - 0.5, **white)
    axes.tick_params(which="both", length=0)
    axes.set_frame_on(False)
    if max(np.isfinite(p.values).sum() for p in others) <= _FEW_CELLS:
        _numbers(axes, panel, norm)
    return image


def _numbers(axes: Axes, panel: Panel, norm: Any) -> None:
    for row, column in np.argwhere(np.isfinite(panel.values)):
        value = float(panel.values[row, column])
        share = float(norm(value))
        is_dark = share > 0.6 if panel.kind == "change" else abs(share - 0.5) > 0.35
        text = _percent(value) if panel.kind == "change" else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5,
                  color="white" if is_dark else "#222222")  # fmt: skip


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}" if value >= 0.001 else "<.1%"


def _label(axes: Axes, heat: Heat, *, left: bool, below: bool) -> None:
    step = figures.every(len(heat.rows), _MOST_LABELS)
    rows = heat.rows[::step] if left else []
    axes.set_yticks(range(0, len(rows) * step, step), [shortened(row, _LONGEST) for row in rows])
    columns = [shortened(column, _LONGEST) for column in (heat.columns if below else [])]
    axes.set_xticks(range(len(columns)), columns, rotation=90)


def _colour_bar(figure: Figure, images: Sequence[tuple[Axes, Any]], kind: Kind) -> None:
    axes = [one for one, _ in images]
    if not any(np.ma.count(image.get_array()) for _, image in images):
        return  # nothing has a colour
    is_change = kind == "change"
    bar = figure.colorbar(
        images[0][1], ax=axes, aspect=18, shrink=0.9, pad=0.02,
        label="change / norm of A" if is_change else "cosine of changes",
        format=(lambda share, _: f"{100 * share:g}%") if is_change else None,
    )  # fmt: skip
    bar.outline.set_visible(False)


def _legend(figure: Figure, marks: set[Mark]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=_HATCHES[mark][0], hatch=_HATCHES[mark][1], edgecolor="#999999",
              linewidth=0.5, label=_MEANINGS[mark])
        for mark in _MEANINGS if mark in marks
    ]  # fmt: skip
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles),
                      frameon=False, fontsize=8, handlelength=1.6, handleheight=1.1)  # fmt: skip

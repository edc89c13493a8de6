"""Pictures of gradients, which matplotlib draws when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from surgeon.pictures import figures
from surgeon.pictures.markup import shortened
from surgeon.pictures.palette import SERIES, series

if TYPE_CHECKING:
    from surgeon.pictures.figures import Axes, Figure


class Point(Protocol):
    """What a line is drawn through: records `first` to `last` of one stage, norms by group."""

    @property
    def stage(self) -> str: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def groups(self) -> Mapping[str, Norms]: ...


class Norms(Protocol):
    """The norms of a group over those records."""

    @property
    def mean(self) -> float | None: ...
    @property
    def nonfinite(self) -> int: ...


# A bar: what it is of, its group, and the norm, None where there is no gradient.
Bar = tuple[str, str, float | None]
# Where there are more blocks, layers are shown instead.
_MOST_BARS = 60
_LONGEST = 48
# Dashes of `palette`, in the width of a line.
_UNIT = 0.7


def gradients(
    stage: str, norm: float | None, blocks: Sequence[Bar], layers: Sequence[Bar],
    path: str | Path | None,
) -> Figure:  # fmt: skip
    """Draw a bar for each block in the colour of its group, or for each layer."""
    figure = _bars(stage, norm, blocks if len(blocks) <= _MOST_BARS else layers)
    return _saved(figure, path)


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figures.require_drawable(Path(path))
        figures.save(figure, Path(path))
    return figure


@figures.figured
def _bars(stage: str, norm: float | None, bars: Sequence[Bar]) -> Figure:
    labels = 0.075 * max((min(len(name), _LONGEST) for name, *_ in bars), default=1)
    figure = figures.new(labels + 5.5, 1.5 + 0.23 * len(bars))
    whole = "" if norm is None else f", {norm:.4g} in all"
    figures.titled(figure, f"Gradient norms of stage {shortened(stage, _LONGEST)}{whole}")
    axes = figure.subplots()
    groups = list(dict.fromkeys(group for _, group, _ in bars))
    for row, (_, group, value) in enumerate(bars):
        colour = SERIES[groups.index(group) % len(SERIES)]
        first = group not in [other for _, other, _ in bars[:row]]
        label = shortened(group, 30) if first and group else None
        axes.barh(row, value or 0.0, 0.7, color=colour, label=label)
        said = "no gradient" if value is None else f"{value:.3g}"
        axes.annotate(said, (value or 0.0, row), (4, 0), textcoords="offset points", va="center",
                      fontsize=7.5, color="#444444")  # fmt: skip
    axes.set_yticks(range(len(bars)), [shortened(name, _LONGEST) for name, *_ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("norm of the gradient")
    if len(groups) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="group")
    return figure


def history(points: Sequence[Point], groups: Sequence[str], path: str | Path | None) -> Figure:
    """Draw the norm of each group over time, on a logarithmic axis."""
    return _saved(_lines(points, groups), path)


@figures.figured
def _lines(points: Sequence[Point], groups: Sequence[str]) -> Figure:
    figure = figures.new(8.5, 3.6)
    every = max((point.last - point.first + 1 for point in points), default=1)
    means = f", means of {every:,} records" if every > 1 else ""
    figures.titled(figure, f"Gradient norms by group{means}")
    axes = figure.subplots()
    for index, name in enumerate(groups):
        colour, dashes = series(index)
        pattern = [float(part) * _UNIT for part in dashes.split()]
        axes.plot(
            [(point.first + point.last) / 2 for point in points],
            [_mean(point, name) for point in points],
            color=colour, linewidth=1.5, linestyle=(0, pattern) if pattern else "-",
            label=shortened(name, 30),
        )  # fmt: skip
    _stages(axes, points)
    _nonfinite(axes, points)
    if any(norms.mean for point in points for norms in point.groups.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("record")
    axes.set_ylabel("norm of the gradient")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    if groups:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="group")
    return figure


def _mean(point: Point, name: str) -> float:
    """Return the mean of a group's norms; NaN, at which a line breaks, where there is none."""
    mean = point.groups[name].mean if name in point.groups else None
    return mean or float("nan")


def _stages(axes: Axes, points: Sequence[Point]) -> None:
    """Name each stage where it begins, every other one on a grey ground."""
    begins = [
        index for index, point in enumerate(points)
        if not index or points[index - 1].stage != point.stage
    ]  # fmt: skip
    for number, index in enumerate(begins):
        after = begins[number + 1] if number + 1 < len(begins) else len(points)
        left, right = points[index].first - 0.5, points[after - 1].last + 0.5
        if number % 2:
            axes.axvspan(left, right, color="#f0f0f0", zorder=0, linewidth=0)
        axes.annotate(shortened(points[index].stage, 24), (left, 1), (2, 4), fontsize=8.5,
                      xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    if points:
        axes.set_xlim(points[0].first - 0.5, points[-1].last + 0.5)


def _nonfinite(axes: Axes, points: Sequence[Point]) -> None:
    """Mark where a gradient had a NaN or Inf, as the first steps of mixed precision may have."""
    bad = [
        (point.first + point.last) / 2 for point in points
        if any(norms.nonfinite for norms in point.groups.values())
    ]  # fmt: skip
    if bad:
        axes.plot(bad, [0.02] * len(bad), "x", color=SERIES[5], markersize=5, label="nan or inf",
                  transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip

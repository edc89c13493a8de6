"""A picture of a search: the numbers in the order of the trials, and by each value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from surgeon.pictures import figures
from surgeon.pictures.palette import SERIES
from surgeon.trials.search import Found

_COLUMNS = 4
_MOST_PANELS = 24


@figures.figured
def draw(found: Found, path: Path) -> None:
    """Draw a panel for the course of the search, and one for each thing that was varied."""
    trials = [trial for trial in found.trials if trial["value"] is not None]
    numbers = [trial["value"] for trial in trials]
    labels = list(found.variables)[: _MOST_PANELS - 1]
    columns = min(_COLUMNS, 1 + len(labels))
    rows = -(-(1 + len(labels)) // columns)
    figure = figures.new(3.2 * columns, 0.4 + 2.6 * rows)
    figures.titled(figure, "Trials of a search: larger is better")
    course, *panels = figure.subplots(rows, columns, squeeze=False).flat
    order = [trial["trial"] for trial in trials]
    course.scatter(order, numbers, s=12, color=SERIES[0])
    course.step(order, np.maximum.accumulate(numbers), where="post", color="grey")
    course.set_xlabel("trial")
    course.set_ylabel("number")
    for panel, label in zip(panels, labels, strict=False):
        values = [_placed(trial["variables"].get(label)) for trial in trials]
        panel.scatter(values, numbers, s=12, color=SERIES[0])
        panel.scatter(_placed(found.variables[label]), found.value, color=SERIES[5], s=30)
        panel.set_xlabel(label)
    for panel in panels[len(labels) :]:
        panel.set_visible(False)
    figures.save(figure, path)


def _placed(value: Any) -> Any:
    """Return what stands on an axis: a number as it is, every other choice as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else str(value)

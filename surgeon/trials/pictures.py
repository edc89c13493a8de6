"""A picture of a search: the numbers in the order of the trials, and by each value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from surgeon.trials.search import Found

_COLUMNS = 4
_MOST_PANELS = 24


def draw(found: Found, path: Path) -> None:
    """Draw a panel for the course of the search, and one for each thing that was varied."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = [trial for trial in found.trials if trial["value"] is not None]
    numbers = [trial["value"] for trial in trials]
    labels = list(found.variables)[: _MOST_PANELS - 1]
    columns = min(_COLUMNS, 1 + len(labels))
    rows = -(-(1 + len(labels)) // columns)
    # Without a date and random ids the same search is the same file.
    with mpl.rc_context({"svg.hashsalt": "surgeon", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        course, *panels = figure.subplots(rows, columns, squeeze=False).flat
        order = [trial["trial"] for trial in trials]
        course.scatter(order, numbers, s=12)
        course.step(order, np.maximum.accumulate(numbers), where="post", color="grey")
        course.set_xlabel("trial")
        course.set_ylabel("number")
        for panel, label in zip(panels, labels, strict=False):
            values = [_placed(trial["variables"].get(label)) for trial in trials]
            panel.scatter(values, numbers, s=12)
            panel.scatter(_placed(found.variables[label]), found.value, color="crimson", s=30)
            panel.set_xlabel(label)
        for panel in panels[len(labels) :]:
            panel.set_visible(False)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def _placed(value: Any) -> Any:
    """Return what stands on an axis: a number as it is, every other choice as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else str(value)

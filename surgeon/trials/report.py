"""A search as text: a line for each trial while it runs, and a table in the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.base.tables import table
from surgeon.trials.study import Trial
from surgeon.trials.varied import Varied


def line_of(trial: Trial, best: Trial | None) -> str:
    """Say what a trial gave, and which is the best so far."""
    if trial.value is None:
        return f"trial {trial.number}: failed: {trial.message}"
    so_far = "the best so far" if best is trial else ""
    if best is not None and best is not trial:
        so_far = f"the best is {_number(best.value)}, of trial {best.number}"
    return f"trial {trial.number}: {_number(trial.value)} ({so_far})"


def as_text(trials: Sequence[Trial], best: Trial, varied: Sequence[Varied]) -> str:
    """Return the trials as a table, the best with a star, and the best values."""
    labels = [one.label for one in varied]
    rows = [
        (
            "*" if trial.number == best.number else "",
            str(trial.number),
            "" if trial.value is None else _number(trial.value),
            *(_cell(trial.values, label) for label in labels),
            trial.message,
        )
        for trial in trials
    ]
    headers = ("", "trial", "number", *labels, "failed")
    values = ", ".join(f"{label} = {_cell(best.values, label)}" for label in labels)
    shown = table(headers, rows, {"trial", "number", *labels})
    return f"{shown}\n\nbest: {_number(best.value)}, of trial {best.number}: {values}"


def _cell(values: Mapping[str, Any], label: str) -> str:
    if label not in values:
        return ""
    value = values[label]
    return _number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _number(value: float | None) -> str:
    return f"{value:.6g}"

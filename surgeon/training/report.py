"""What a stage trains and with which settings, what it freezes, and how much that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from surgeon.base.errors import listed
from surgeon.base.regions import count
from surgeon.base.tables import table
from surgeon.training.started import Started

# Shown in columns of their own; the other settings that the manifest gives share one.
_OWN_COLUMNS = ("lr", "weight_decay")
_FIGURES = ("elements", *_OWN_COLUMNS)
_HEADERS = ("group", *_FIGURES, "settings", "parameters")


@dataclass(frozen=True)
class GroupReport:
    """One optimizer group: what it trains, and its settings as they are now.

    `given` are those that the manifest gives; the others are the optimizer's defaults.
    """

    name: str
    params: tuple[str, ...]
    elements: int
    settings: Mapping[str, Any]
    given: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What is trained and what is frozen in the stage of the last start; `str()` is a table."""

    stage: str
    optimizer: str
    scheduler: str | None
    groups: tuple[GroupReport, ...]
    frozen: tuple[str, ...]
    frozen_elements: int
    eval_modules: tuple[str, ...]

    @property
    def trained_elements(self) -> int:
        """The number of elements in all groups."""
        return sum(group.elements for group in self.groups)

    def as_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {**asdict(self), "trained_elements": self.trained_elements}

    def __str__(self) -> str:
        lines = [self._title, table(_HEADERS, self._rows(), _FIGURES)]
        if self.eval_modules:
            lines.append(f"in evaluation mode: {listed(self.eval_modules)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from surgeon.pictures.notebook import rows_shown

        modules = [f"in evaluation mode: {listed(self.eval_modules)}"] if self.eval_modules else []
        return rows_shown(self._title, _HEADERS, self._rows(), _FIGURES, notes=modules)

    @property
    def _title(self) -> str:
        scheduler = f", {self.scheduler}" if self.scheduler else ""
        return f"stage {self.stage}: {self.optimizer}{scheduler}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            (
                group.name,
                f"{group.elements:,}",
                *(_written(group.settings.get(key)) for key in _OWN_COLUMNS),
                ", ".join(
                    f"{key}={_written(group.settings[key])}"
                    for key in group.given
                    if key not in _OWN_COLUMNS
                ),
                listed(group.params),
            )
            for group in self.groups
        ]
        if self.frozen:
            blank = ("",) * (len(_OWN_COLUMNS) + 1)
            rows.append(("(frozen)", f"{self.frozen_elements:,}", *blank, listed(self.frozen)))
        return rows


def _written(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def report_of(started: Started, args: Mapping[str, object]) -> Report:
    """Return what the stage trains; `args` are those that the manifest gives all groups."""
    entries = {entry["name"]: entry for entry in started.optimizer.param_groups}
    stage = started.stage
    return Report(
        stage=started.name,
        optimizer=type(started.optimizer).__name__,
        scheduler=type(started.scheduler).__name__ if started.scheduler else None,
        groups=tuple(
            GroupReport(
                name=group.name,
                params=tuple(started.spelled(held) for held in members),
                elements=sum(count(held.region) for held in members),
                settings={
                    key: value.tolist() if isinstance(value, Tensor) else value
                    for key, value in entries.get(group.name, {}).items()
                    if key not in ("params", "name")
                },
                given=tuple({**args, **group.settings}),
            )
            for group, members in started.groups
        ),
        frozen=tuple(started.spelled(block) for block in stage.frozen),
        frozen_elements=sum(count(block.region) for block in stage.frozen),
        eval_modules=stage.stage.eval_modules,
    )

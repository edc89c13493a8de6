"""How gradients went on: the norm of each group, step by step, in memory that is bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.tables import number, plural, shown_lines, table

if TYPE_CHECKING:
    from surgeon.pictures.figures import Figure

# Points that are kept; where there are more, each two that follow each other become one.
_MOST = 1024


@dataclass(frozen=True)
class Norms:
    """The norms of one group's gradient over some steps; `nonfinite` are those with NaN or Inf.

    `mean` and `largest` are of the others, None where there are none.
    """

    total: float = 0.0
    count: int = 0
    largest: float | None = None
    nonfinite: int = 0

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def __add__(self, other: Norms) -> Norms:
        both = [one for one in (self.largest, other.largest) if one is not None]
        return Norms(
            self.total + other.total,
            self.count + other.count,
            max(both, default=None),
            self.nonfinite + other.nonfinite,
        )


def _of(norm: float) -> Norms:
    return Norms(norm, 1, norm) if isfinite(norm) else Norms(nonfinite=1)


@dataclass(frozen=True)
class Point:
    """Records `first` to `last`, counted from 0, all of one stage: the norms by group."""

    stage: str
    first: int
    last: int
    groups: Mapping[str, Norms]

    @property
    def records(self) -> int:
        """How many records it stands for."""
        return self.last - self.first + 1

    def joined(self, later: Point) -> Point:
        """Return one point for this and the one that follows."""
        names = dict.fromkeys([*self.groups, *later.groups])
        groups = {
            name: self.groups.get(name, Norms()) + later.groups.get(name, Norms()) for name in names
        }
        return Point(self.stage, self.first, later.last, groups)


@dataclass
class History:
    """What `run.record()` kept of all stages; `str()` is a table, `plot()` a picture.

    Up to 1024 points, of `every` records each: where there are more, two become one.
    """

    points: list[Point] = field(default_factory=list)
    every: int = 1
    records: int = 0

    def add(self, stage: str, groups: Mapping[str, float | None]) -> None:
        """Keep the norms of one step; a group without a gradient has none."""
        norms = {name: _of(norm) for name, norm in groups.items() if norm is not None}
        self._append(Point(stage, self.records, self.records, norms))
        self.records += 1
        if len(self.points) > _MOST:
            self.every *= 2
            earlier, self.points = self.points, []
            for point in earlier:
                self._append(point)

    def _append(self, point: Point) -> None:
        last = self.points[-1] if self.points else None
        is_one = last and last.stage == point.stage
        if last and is_one and last.records + point.records <= self.every:
            self.points[-1] = last.joined(point)
        else:
            self.points.append(point)

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups that had a gradient, in the order in which they came."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.groups))

    def as_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {
            "records": self.records,
            "every": self.every,
            "points": [
                {
                    "stage": point.stage,
                    "first": point.first,
                    "last": point.last,
                    "groups": {
                        name: {"mean": norms.mean, "largest": norms.largest,
                               "nonfinite": norms.nonfinite}
                        for name, norms in point.groups.items()
                    },
                }
                for point in self.points
            ],
        }  # fmt: skip

    def plot(self, path: str | Path | None = None) -> Figure:
        """Return a picture of the norms over time, a line for each group; saved where asked.

        Needs matplotlib, the extra `picture`.
        """
        from surgeon.training.plots import history

        return history(self.points, self.groups, path)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each stage and group: records, means of the ends, the largest."""
        found: list[tuple[str, ...]] = []
        for stage in dict.fromkeys(point.stage for point in self.points):
            own = [point for point in self.points if point.stage == stage]
            for name in dict.fromkeys(name for point in own for name in point.groups):
                norms = [point.groups[name] for point in own if name in point.groups]
                total = sum(norms, Norms())
                ends = (number(norms[0].mean), number(norms[-1].mean), number(total.largest))
                bad = f"{total.nonfinite:,}" if total.nonfinite else ""
                found.append((stage, name, f"{total.count + total.nonfinite:,}", *ends, bad))
        return found

    def __str__(self) -> str:
        if not self.points:
            return "nothing is recorded; call run.record() after each backward pass"
        text = table(HEADERS, self.rows(), right=HEADERS[2:])
        return shown_lines(f"{plural(self.records, 'record')}\n{text}")

    def _repr_html_(self) -> str:
        from surgeon.pictures.notebook import rows_shown

        title = f"Gradient norms, {plural(self.records, 'record')}"
        return rows_shown(title, HEADERS, self.rows(), right=HEADERS[2:])


HEADERS = ("stage", "group", "records", "first", "last", "largest", "nan or inf")

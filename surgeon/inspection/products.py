"""Inner products of models' differences, and what they tell: distances, cosines, conflicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from surgeon.numeric.dtypes import Array


@dataclass(frozen=True)
class Figures:
    """Inner products of A and of the others' differences from it, over some of the elements.

    `products` is (1 + others, 1 + others), A first; `changed` counts elements that two of the
    others or more differ from A in, and `conflicting` those of them that they move both ways.
    Elements with a NaN or Inf anywhere are counted in `nonfinite` alone.
    """

    products: Array
    elements: int = 0
    changed: int = 0
    conflicting: int = 0
    nonfinite: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.products + other.products,
            self.elements + other.elements,
            self.changed + other.changed,
            self.conflicting + other.conflicting,
            self.nonfinite + other.nonfinite,
        )

    @property
    def relative(self) -> list[float | None]:
        """The norm of each other model's difference by the norm of A."""
        squares = np.diagonal(self.products)
        return [_ratio(math.sqrt(square), math.sqrt(squares[0])) for square in squares[1:]]

    @property
    def cosines(self) -> list[list[float | None]]:
        """The cosines between the differences, a row and a column for each of the others."""
        count = len(self.products) - 1
        return [[self._cosine(i + 1, j + 1) for j in range(count)] for i in range(count)]

    @property
    def cosine(self) -> float | None:
        """The mean cosine over all pairs of differences; of one other model, that to A itself."""
        if len(self.products) == 2:
            a, change, product = self.products[0, 0], self.products[1, 1], self.products[0, 1]
            other = a + 2 * product + change
            return _ratio(a + product, math.sqrt(a) * math.sqrt(max(other, 0.0)))
        pairs = combinations(range(1, len(self.products)), 2)
        known = [cosine for i, j in pairs if (cosine := self._cosine(i, j)) is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def conflicts(self) -> float | None:
        """The share of elements that are moved both ways, among those that two or more move."""
        return _ratio(self.conflicting, self.changed)

    def _cosine(self, i: int, j: int) -> float | None:
        norms = math.sqrt(self.products[i, i]) * math.sqrt(self.products[j, j])
        return _ratio(self.products[i, j], norms)

    def as_json(self) -> dict[str, Any]:
        several = len(self.products) > 2
        return {
            "elements": self.elements,
            "norm": _known(math.sqrt(self.products[0, 0])),
            "relative_change": self.relative,
            "cosine": self.cosine,
            **({"cosines": self.cosines, "sign_conflicts": self.conflicts} if several else {}),
            **({"nonfinite": self.nonfinite} if self.nonfinite else {}),
        }


def _ratio(value: float, by: float) -> float | None:
    return _known(float(value) / float(by)) if by else None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None

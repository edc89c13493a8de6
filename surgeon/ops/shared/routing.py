"""What a training run saw of routers: how often each expert was chosen, and with which others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from surgeon.base.errors import PlanError
from surgeon.draft import Draft
from surgeon.ops.shared.mixtures import Mixture
from surgeon.ops.shared.scores import best, numbers, read_scores, require_named, section

Score = Annotated[
    Literal["frequency", "weight"],
    "what the file ranks by: how often an expert was chosen, or the mean weight that it got",
]
Keep = Annotated[int | None, "with a file, how many experts each layer keeps", {"minimum": 1}]


@dataclass(frozen=True)
class Routing:
    """A file of `surgeon.training.collect_routing`, and how much of it is to be kept."""

    location: str
    layers: Mapping[str, Any]
    score: str
    keep: int
    groups: int

    @classmethod
    def read(
        cls, draft: Draft, location: str, keep: int | None, score: str, groups: int
    ) -> Routing:
        """Read a file; raises PlanError where it is none, or `keep` is missing or odd."""
        if keep is None:
            raise PlanError("'keep' says how many experts of each layer are kept by the file")
        if keep % groups:
            raise PlanError(
                f"{keep} experts cannot be as many of each of {groups} groups (n_group)"
            )
        layers = section(read_scores(draft, location, "routing"), "layers", location)
        return cls(location, layers, score, keep, groups)

    def _of(self, mixture: Mixture, word: str) -> tuple[Any, str]:
        layer = require_named(self.layers, mixture.layer, self.location)
        where = f"{self.location}: layers.{mixture.layer}.{word}"
        return (layer.get(word) if isinstance(layer, dict) else None), where

    def frequencies(self, mixture: Mixture) -> list[float]:
        """Return how often each expert was chosen, or whatever is ranked by."""
        values, where = self._of(mixture, self.score)
        found = numbers(values, mixture.count, where)
        if any(value < 0 for value in found):
            raise PlanError(f"{where}: holds negative numbers")
        return found

    def best(self, mixture: Mixture) -> list[int]:
        """Return the experts to keep, as many of each group."""
        if self.keep > mixture.count:
            raise PlanError(
                f"'{mixture.block}' has {mixture.count} experts, and no {self.keep} to keep"
            )
        return best(self.frequencies(mixture), self.keep, parts=self.groups)

    def similarities(self, mixture: Mixture) -> list[list[float]]:
        """Return how alike the router takes each two experts."""
        values, where = self._of(mixture, "similarity")
        if not isinstance(values, list) or len(values) != mixture.count:
            raise PlanError(f"{where}: is no list of {mixture.count} lists")
        return [numbers(row, mixture.count, where) for row in values]

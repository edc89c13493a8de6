"""Which elements of task vectors a merge keeps: the largest, the middle, or chance decides.

A pruning sets what it does not keep to zero by multiplying, so that NaN and Inf stay visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, Any, Literal

import numpy as np

from surgeon.dtypes import Array
from surgeon.errors import PlanError
from surgeon.initialisers.sampling import drawn
from surgeon.lazy import Blocks, Operands
from surgeon.merging import At, Varying
from surgeon.merging.selection import Cut, Measure, cuts, share

Densities = Annotated[
    list[float],
    Varying(above=0, maximum=1, per="model"),
    "the fraction of each task vector that is kept",
]
Epsilons = Annotated[
    list[float],
    Varying(minimum=0, below=0.5, per="model", default=0.15),
    "how far the probability of being kept goes below and above the density; default 0.15",
]
Gammas = Annotated[
    list[float],
    Varying(minimum=0, below=1, per="model", default=0.01),
    "the fraction of largest changes that is dropped; default 0.01",
]
Rescale = Annotated[
    Literal["paper", "l1", "none"],
    "what makes up for what is dropped: paper divides by the probability of being kept; l1 "
    "restores the sum of magnitudes",
]


@dataclass(frozen=True)
class Pruning:
    """What becomes of a block of one model's task vector, or of its negative, in place.

    `prune` gets the number of the model, the block, where it begins, and the statistics.
    """

    prune: Callable[[int, Array, int, Any], None]
    statistics: Callable[[Operands], Any] | None = None
    run: int = 1


def task_vector(model: int) -> Measure:
    """Return the measure that is the change of one model, 0 being the first."""

    def measure(blocks: Blocks) -> Array:
        change: Array = np.subtract(blocks[model + 1], blocks[0])
        return change

    return measure


def unpruned() -> Pruning:
    """Keep everything."""
    return Pruning(lambda model, change, start, statistics: None)


def largest(at: At, densities: Sequence[float]) -> Pruning:
    """Keep the `density` largest magnitudes of each task vector."""
    count = prod(at.shape)
    measures = [task_vector(model) for model in range(len(densities))]
    counts = [[share(density, count)] for density in densities]
    if all(density == 1 for density in densities):
        return unpruned()

    def find(operands: Operands) -> list[list[Cut]]:
        return cuts(operands, measures, counts, monotone_in_float32=True)

    def prune(model: int, change: Array, start: int, statistics: list[list[Cut]]) -> None:
        if densities[model] < 1:
            change *= statistics[model][0].kept(np.abs(change), start)

    return Pruning(prune, find)


def middle(at: At, densities: Sequence[float], gammas: Sequence[float]) -> Pruning:
    """Drop the `gamma` largest magnitudes of each task vector, then keep the `density` next."""
    count = prod(at.shape)
    measures = [task_vector(model) for model in range(len(densities))]
    dropped = [int(gamma * count) for gamma in gammas]
    counts = [
        [top, top + int(density * count)] for top, density in zip(dropped, densities, strict=True)
    ]

    def find(operands: Operands) -> list[list[Cut]]:
        return cuts(operands, measures, counts, monotone_in_float32=True)

    def prune(model: int, change: Array, start: int, statistics: list[list[Cut]]) -> None:
        magnitudes = np.abs(change)
        outliers, wanted = (cut.kept(magnitudes, start) for cut in statistics[model])
        change *= np.greater(wanted, outliers)

    return Pruning(prune, find)


def random(at: At, densities: Sequence[float], rescale: str) -> Pruning:
    """Keep each element with probability `density`, independently of all others."""
    count = prod(at.shape)

    def prune(model: int, change: Array, start: int, statistics: None) -> None:
        density = densities[model]
        if density < 1:
            sample = partial(_bernoulli, density)
            change *= drawn(at.streams[model], count, start, start + len(change), sample)
            if rescale == "paper":
                change /= density

    return _rescaled(Pruning(prune), len(densities), rescale)


def _bernoulli(probability: float, generator: np.random.Generator, count: int) -> Array:
    """Draw truths of this probability: of eight bits each, of more where they do not decide."""
    # Random bits are what dropping at random costs most of all.
    whole, rest = divmod(probability * 256, 1)
    bits = generator.integers(0, 256, count, dtype=np.uint8)
    kept: Array = bits < whole
    undecided = np.flatnonzero(bits == whole)
    kept[undecided] = generator.random(len(undecided)) < rest
    return kept


def by_rank(at: At, densities: Sequence[float], epsilons: Sequence[float], rescale: str) -> Pruning:
    """Keep elements with a probability that grows with the rank of their magnitude in their row.

    It grows from density - ε to density + ε; rows are those of dimension 0, a vector is one row,
    and an element alone in its row has the density. Of equal magnitudes the first has the lowest
    rank. Raises PlanError where it is not within 0 and 1, or is one of them.
    """
    for density, epsilon in zip(densities, epsilons, strict=True):
        if density - epsilon <= 0 or density + epsilon >= 1:
            raise PlanError(
                f"density {density:g} ± epsilon {epsilon:g} is not between 0 and 1; make epsilon "
                "smaller"
            )
    count = prod(at.shape)
    row = max(1, prod(at.shape[1:]) if len(at.shape) > 1 else count)

    def prune(model: int, change: Array, start: int, statistics: None) -> None:
        density, epsilon = densities[model], epsilons[model]
        chances = np.array([density])
        if row > 1:
            chances = density - epsilon + 2 * epsilon * np.arange(row) / (row - 1)
        probabilities = np.empty(len(change))
        order = _ascending(np.abs(change).reshape(-1, row))
        probabilities[order] = np.tile(chances, len(change) // row)
        numbers = drawn(at.streams[model], count, start, start + len(change), _uniform)
        change *= numbers < probabilities
        if rescale == "paper":
            change /= probabilities

    return _rescaled(Pruning(prune, run=row), len(densities), rescale)


def _uniform(generator: np.random.Generator, count: int) -> Array:
    return generator.random(count, np.float32)


def _ascending(rows: Array) -> Array:
    """Return the flat positions of each row's magnitudes, ascending, equal ones in their order.

    Sorting keys that end in the position is several times faster than NumPy's argsort. The keys
    begin with the bits of float32 magnitudes; rows that these alone do not order are sorted again.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = rows.astype(np.float32)
    keys = narrow.view(np.uint32).astype(np.uint64)
    np.left_shift(keys, 32, out=keys)
    np.bitwise_or(keys, np.arange(rows.shape[1], dtype=np.uint64), out=keys)
    keys.sort(axis=1)
    np.bitwise_and(keys, 0xFFFFFFFF, out=keys)
    order: Array = keys.view(np.int64)
    inexact = np.flatnonzero(~np.equal(narrow, rows).all(axis=1))
    if len(inexact):
        ranked = np.take_along_axis(rows[inexact], order[inexact], axis=1)
        wrong = inexact[(ranked[:, 1:] < ranked[:, :-1]).any(axis=1)]
        order[wrong] = np.argsort(rows[wrong], axis=1, kind="stable")
    order += np.arange(0, rows.size, max(1, rows.shape[1]))[:, np.newaxis]
    return order.reshape(-1)


def _rescaled(pruning: Pruning, models: int, rescale: str) -> Pruning:
    """Multiply each task vector so that its magnitudes add up to what they did, if that is "l1"."""
    if rescale != "l1":
        return pruning

    def find(operands: Operands) -> list[float]:
        before: list[list[float]] = [[] for _ in range(models)]
        after: list[list[float]] = [[] for _ in range(models)]
        for blocks in operands.blocks(np.dtype(np.float64)):
            with np.errstate(over="ignore", invalid="ignore"):
                for model in range(models):
                    change = np.subtract(blocks[model + 1], blocks[0])
                    before[model].append(float(np.add.reduce(np.abs(change))))
                    pruning.prune(model, change, blocks.start, None)
                    after[model].append(float(np.add.reduce(np.abs(change))))
        return [_ratio(sum(b), sum(a)) for b, a in zip(before, after, strict=True)]

    def prune(model: int, change: Array, start: int, statistics: list[float]) -> None:
        pruning.prune(model, change, start, None)
        change *= statistics[model]

    return Pruning(prune, find, pruning.run)


def _ratio(before: float, after: float) -> float:
    return before / after if after else 1.0

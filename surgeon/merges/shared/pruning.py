"""Which elements of task vectors a merge keeps: the largest, the middle, or chance decides.

A pruning sets what it does not keep to zero by multiplying, so that NaN and Inf stay visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.lazy import Operands, StoredBlocks, step_of
from surgeon.lazy.random import drawn_words, truths
from surgeon.merges.shared import TensorContext, Varying
from surgeon.merges.shared.selection import Cut, Difference, cuts, held_bytes, share
from surgeon.numeric import compiled, drawing
from surgeon.numeric.compiled import Block, Change
from surgeon.numeric.dtypes import Array
from surgeon.numeric.ranks import BY_RANK_BYTES, KEPT_BYTES, NUMBERS, Chances, numbers_of
from surgeon.numeric.sums import sum_of

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


# Bytes for what is kept of all models, eight elements in each; beyond, it is chosen again.
_HELD_BYTES = 16 << 20
# What Python takes to know a block of a model: its sums, its bits as an object, and where they are.
_PER_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Pruning:
    """What becomes of a block of one model's task vector, or of its negative, in place.

    `prune` gets the number of the model, the block, where it begins, and the statistics. `run` and
    `held_bytes` are those of `Arithmetic`. `change` says the same for a compiled loop.
    """

    prune: Callable[[int, Array, int, Any], None]
    change: Callable[[int, StoredBlocks, Any], Change]
    statistics: Callable[[Operands], Any] | None = None
    run: int = 1
    held_bytes: int = 0


def unpruned(at: TensorContext) -> Pruning:
    """Keep everything."""
    return Pruning(
        lambda model, change, start, statistics: None, lambda model, blocks, statistics: Change()
    )


def largest(at: TensorContext, *, density: Densities) -> Pruning:
    """Keep the `density` largest magnitudes of each task vector."""
    count = prod(at.shape)
    measures = [Difference(model) for model in range(len(density))]
    counts = [[share(fraction, count)] for fraction in density]
    if all(fraction == 1 for fraction in density):
        return unpruned(at)

    def find(operands: Operands) -> list[list[Cut]]:
        return cuts(operands, measures, counts, monotone_in_float32=True)

    def prune(model: int, change: Array, start: int, statistics: list[list[Cut]]) -> None:
        if density[model] < 1:
            change *= statistics[model][0].kept(np.abs(change), start)

    def change(model: int, blocks: StoredBlocks, statistics: list[list[Cut]]) -> Change:
        kept = density[model] < 1
        return Change(cut=_from(blocks, statistics[model][0]) if kept else None)

    return Pruning(prune, change, find, held_bytes=held_bytes(count, len(density)))


def middle(at: TensorContext, *, density: Densities, gamma: Gammas) -> Pruning:
    """Drop the `gamma` largest magnitudes of each task vector, then keep the `density` next."""
    count = prod(at.shape)
    measures = [Difference(model) for model in range(len(density))]
    dropped = [int(fraction * count) for fraction in gamma]
    counts = [
        [top, top + int(fraction * count)] for top, fraction in zip(dropped, density, strict=True)
    ]

    def find(operands: Operands) -> list[list[Cut]]:
        return cuts(operands, measures, counts, monotone_in_float32=True)

    def prune(model: int, change: Array, start: int, statistics: list[list[Cut]]) -> None:
        magnitudes = np.abs(change)
        outliers, wanted = (cut.kept(magnitudes, start) for cut in statistics[model])
        change *= np.greater(wanted, outliers)

    def change(model: int, blocks: StoredBlocks, statistics: list[list[Cut]]) -> Change:
        outliers, wanted = (_from(blocks, cut) for cut in statistics[model])
        return Change(cut=wanted, dropped=outliers)

    return Pruning(prune, change, find, held_bytes=held_bytes(count, 2 * len(density)))


def _from(blocks: StoredBlocks, cut: Cut) -> tuple[float, int]:
    """Return a cut with places that are counted from where a block begins."""
    return cut.least, cut.end - blocks.start


def random(at: TensorContext, *, density: Densities, rescale: Rescale = "paper") -> Pruning:
    """Keep each element with probability `density`, independently of all others."""
    count = prod(at.shape)

    def choose(model: int, start: int, change: Block, base: Block | None) -> Array:
        chance, size = density[model], len(change.elements)
        if chance == 1:
            return np.ones(size, bool)
        return truths(at.streams[model], chance, count, start, start + size)

    return _chosen(at, choose, density, rescale)


def by_rank(
    at: TensorContext, *, density: Densities, epsilon: Epsilons, rescale: Rescale = "paper"
) -> Pruning:
    """Keep elements with a probability that grows with the rank of their magnitude in their row.

    It grows from density - ε to density + ε; rows are those of dimension 0, a vector is one row,
    and an element alone in its row has the density. Of equal magnitudes the first has the lowest
    rank. Raises PlanError where it is not within 0 and 1, or is one of them.
    """
    for chance, reach in zip(density, epsilon, strict=True):
        if chance - reach <= 0 or chance + reach >= 1:
            raise PlanError(
                f"density {chance:g} ± epsilon {reach:g} is not between 0 and 1; make epsilon "
                "smaller"
            )
    count = prod(at.shape)
    row = max(1, prod(at.shape[1:]) if len(at.shape) > 1 else count)
    chances = [
        Chances(chance, reach if row > 1 else 0.0, row)
        for chance, reach in zip(density, epsilon, strict=True)
    ]

    def words(model: int, start: int, size: int) -> Array:
        return drawn_words(at.streams[model], start, start + size)

    def choose(model: int, start: int, change: Block, base: Block | None) -> Array:
        drawn = words(model, start, len(change.elements))
        if compiled.knows(change.dtype):
            return drawing.kept_by_rank(change, base, row, chances[model].table(), drawn)
        return chances[model].kept(np.abs(change.elements), drawn)

    def prune(model: int, change: Array, start: int, statistics: None) -> None:
        probabilities = chances[model].by_rank(np.abs(change))
        numbers = numbers_of(words(model, start, len(change)))
        change *= numbers < probabilities * NUMBERS
        change /= probabilities

    def change(model: int, blocks: StoredBlocks, statistics: None) -> Change:
        base, block = blocks[0], blocks[model + 1]
        found = drawing.by_rank(block, base, row, chances[model].table())
        return Change(words=words(model, blocks.start, len(found)), chances=found)

    step = min(count, step_of(row))
    if rescale == "paper":
        return Pruning(prune, change, run=row, held_bytes=BY_RANK_BYTES * step)
    return _chosen(at, choose, density, rescale, row, KEPT_BYTES * step)


# Says which elements of a block are kept: of a model's number, where the block begins, and its task
# vector, or else what is stored of the model and of the base.
Choose = Callable[[int, int, Block, Block | None], Array]


def _chosen(
    at: TensorContext,
    choose: Choose,
    densities: Sequence[float],
    rescale: str,
    run: int = 1,
    choosing_bytes: int = 0,
) -> Pruning:
    """Keep what is chosen, and divide it by the density where `rescale` is "paper".

    Where it is "l1", multiply it so that magnitudes add up to what they did.
    """

    def prune(model: int, change: Array, start: int, statistics: None) -> None:
        change *= choose(model, start, _block(change), None)
        if rescale == "paper":
            change /= densities[model]

    def change_of(model: int, blocks: StoredBlocks, statistics: None) -> Change:
        mask = choose(model, blocks.start, blocks[model + 1], blocks[0])
        return Change(mask, divide=densities[model] if rescale == "paper" else 1.0)

    def find(operands: Operands) -> _Restoring:
        models = range(len(densities))
        before: list[list[float]] = [[] for _ in models]
        after: list[list[float]] = [[] for _ in models]
        choices = _Choices(choose, _HELD_BYTES)
        for model, sums in _summed(operands, choices, len(densities)):
            before[model].append(sums[0])
            after[model].append(sums[1])
        ratios = [_ratio(sum(b), sum(a)) for b, a in zip(before, after, strict=True)]
        return _Restoring(ratios, choices)

    def restore(model: int, change: Array, start: int, statistics: _Restoring) -> None:
        change *= statistics.choices.kept(model, start, _block(change), None)
        change *= statistics.ratios[model]

    def restored(model: int, blocks: StoredBlocks, statistics: _Restoring) -> Change:
        mask = statistics.choices.kept(model, blocks.start, blocks[model + 1], blocks[0])
        return Change(mask, multiply=statistics.ratios[model])

    if rescale != "l1":
        return Pruning(prune, change_of, run=run, held_bytes=choosing_bytes)
    count = prod(at.shape)
    bits_bytes = min(_HELD_BYTES, len(densities) * count // 8)
    blocks = len(densities) * (count // step_of(run) + 1)
    return Pruning(
        restore, restored, find, run, choosing_bytes + bits_bytes + _PER_BLOCK_BYTES * blocks
    )


@dataclass
class _Choices:
    """What is kept of blocks, as bits: those of the first blocks of a tensor that is very large."""

    choose: Choose
    left_bytes: int
    bits: dict[tuple[int, int, int], Array] = field(default_factory=dict)

    def kept(self, model: int, start: int, change: Block, base: Block | None) -> Array:
        """Return what is remembered, or choose, and remember it."""
        size = len(change.elements)
        if (packed := self.bits.get((model, start, size))) is not None:
            return np.unpackbits(packed, count=size).view(bool)
        mask = self.choose(model, start, change, base)
        packed = np.packbits(mask)
        if self.left_bytes >= len(packed):
            self.left_bytes -= len(packed)
            self.bits[model, start, size] = packed
        return mask


def _block(change: Array) -> Block:
    return Block(change, "F64" if change.dtype == np.float64 else "F32")


def _summed(
    operands: Operands, choices: _Choices, models: int
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield, of each block and model, the sums of all magnitudes, and of those that are kept."""
    if operands.are_compiled:
        for stored in operands.stored_blocks(wide=True):
            for model in range(models):
                pair = stored[model + 1], stored[0]
                mask = choices.kept(model, stored.start, *pair)
                for start in range(0, len(mask), operands.step):
                    part = slice(start, start + operands.step)
                    own, base = (block._replace(elements=block.elements[part]) for block in pair)
                    yield model, drawing.magnitudes(own, base, mask[part])
        return
    for blocks in operands.blocks(np.dtype(np.float64)):
        for model in range(models):
            with np.errstate(over="ignore", invalid="ignore"):
                magnitudes = np.subtract(blocks[model + 1], blocks[0])
                np.abs(magnitudes, out=magnitudes)
                before = sum_of(magnitudes)
                mask = choices.kept(model, blocks.start, _block(magnitudes), None)
                magnitudes *= mask
                yield model, (before, sum_of(magnitudes))


@dataclass(frozen=True)
class _Restoring:
    """What each model's task vector is multiplied by, and what is kept of it."""

    ratios: list[float]
    choices: _Choices


def _ratio(before: float, after: float) -> float:
    return before / after if after else 1.0

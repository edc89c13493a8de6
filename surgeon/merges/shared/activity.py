"""Where a model's changes act, and what becomes of those that are its own, or shared (RAM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from surgeon.lazy import Blocks, Operands, StoredBlocks
from surgeon.merges.shared import Arithmetic, Varying
from surgeon.merges.shared.moments import changes, root_mean_squares
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array

Epsilon = Annotated[
    float,
    Varying(minimum=0),
    "a change acts where it is larger than this times the root mean square of its tensor's changes",
]
# From the number of elements that a model shares with others, and of those that are its own.
Boost = Callable[[int, int], float]


@dataclass(frozen=True)
class _Known:
    """For each model, what its changes must exceed, and what multiplies those of its own."""

    limits: Sequence[float]
    boosts: Sequence[float]


def acting(epsilon: float, boost: Boost | None = None) -> Arithmetic:
    """Return b plus, of each element, the mean of the changes that act on it.

    A change that acts alone is multiplied by its model's boost.
    """

    def find(operands: Operands) -> _Known:
        limits = [0.0] * (len(operands.tensors) - 1)
        if epsilon:
            limits = [epsilon * root for root in root_mean_squares(operands, changes)]
        boosts = [1.0] * len(limits)
        if boost:
            shared, own = _count(operands, limits)
            boosts = [boost(*counts) for counts in zip(shared, own, strict=True)]
        return _Known(limits, boosts)

    def combine(blocks: Blocks, statistics: _Known, out: Array) -> Array:
        own = changes(blocks)
        acts = _acts(own, statistics.limits)
        together = _together(acts)
        alone = np.zeros_like(out) if boost else out
        out.fill(0.0)
        for change, mask, factor in zip(own, acts, statistics.boosts, strict=True):
            change *= mask  # a product, so that NaN and Inf stay visible
            out += change
            if boost:
                alone += np.multiply(change, factor, out=change)
        divisors = np.array([1.0, *range(1, len(own) + 1)])
        out /= np.take(divisors, together)
        if boost:
            np.copyto(out, alone, where=together == 1)
        return np.add(blocks[0], out, out=out)

    def compiled_form(blocks: StoredBlocks, statistics: _Known, dtype: str, out: Array) -> bool:
        return compiled.acted(blocks, statistics.limits, statistics.boosts, dtype, out)

    return Arithmetic(combine, find, compiled=compiled_form)


def _acts(own: Sequence[Array], limits: Sequence[float]) -> list[Array]:
    return [np.abs(change) > limit for change, limit in zip(own, limits, strict=True)]


def _together(acts: Sequence[Array]) -> Array:
    """Return how many models act on each element."""
    count = np.zeros(len(acts[0]), np.uint16)
    for mask in acts:
        count += mask
    return count


def _count(operands: Operands, limits: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return how many elements each model shares with others, and how many are its own."""
    shared, own = [0] * len(limits), [0] * len(limits)
    for blocks in operands.blocks(np.dtype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore"):
            acts = _acts(changes(blocks), limits)
        is_alone = _together(acts) == 1
        for model, mask in enumerate(acts):
            alone = int(np.count_nonzero(mask & is_alone))
            own[model] += alone
            shared[model] += int(np.count_nonzero(mask)) - alone
    return shared, own

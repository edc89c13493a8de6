"""What is made of pruned task vectors: their weighted sum, or what is left of it by election."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np

from surgeon.lazy import Blocks, StoredBlocks
from surgeon.merges.shared import Arithmetic, TensorContext, Varying, total_weight
from surgeon.merges.shared.election import divisor_table, election, undefined
from surgeon.merges.shared.pruning import Pruning
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Change, Ending
from surgeon.numeric.dtypes import Array

Weights = Annotated[
    list[float],
    Varying(per="model", default=1),
    "one number for all, or one per model; default 1",
]
Lambda = Annotated[float, Varying(), "what the merged task vector is multiplied by"]
Normalize = Annotated[bool, "divide by the sum of the weights"]
NormalizeAgreeing = Annotated[bool, "divide by the sum of the weights of the models that agree"]


def add_up(
    at: TensorContext,
    pruning: Pruning,
    *,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
) -> Arithmetic:
    """Return b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`, of pruned task vectors sᵢ."""
    total = total_weight(weights) if normalize else 1.0

    def combine(blocks: Blocks, statistics: Any, out: Array) -> Array:
        base = blocks[0]
        spare = out
        for model, (tensor, weight) in enumerate(zip(blocks[1:], weights, strict=True)):
            change = np.subtract(tensor, base, out=spare)
            pruning.prune(model, change, blocks.start, statistics)
            if weight != 1:
                change *= weight
            if model:
                out += change
            else:
                spare = np.empty_like(out) if len(weights) > 1 else out
        if total != 1:
            out /= total
        if lambda_ != 1:
            out *= lambda_
        return np.add(base, out, out=out)

    ending = Ending(total, lambda_)

    def compiled_form(blocks: StoredBlocks, statistics: Any, dtype: str, out: Array) -> bool:
        changes = changes_of(blocks, pruning, weights, statistics)
        return compiled.summed(blocks, changes, ending, dtype, out)

    return Arithmetic(
        combine, pruning.statistics, run=pruning.run, held_bytes=pruning.held_bytes,
        compiled=compiled_form,
    )  # fmt: skip


def changes_of(
    blocks: StoredBlocks, pruning: Pruning, weights: Sequence[float], statistics: Any
) -> list[Change]:
    """Return what becomes of each model's task vector, for a compiled loop."""
    found = [pruning.change(model, blocks, statistics) for model in range(len(weights))]
    return [
        change if change.weight == weight else replace(change, weight=float(weight))
        for change, weight in zip(found, weights, strict=True)
    ]


def elect_and_add(
    at: TensorContext,
    pruning: Pruning,
    *,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: NormalizeAgreeing = True,
) -> Arithmetic:
    """Return b + λ Σ wᵢ sᵢ over those that agree, divided by their Σ wᵢ where `normalize`."""

    def combine(blocks: Blocks, statistics: Any, out: Array) -> Array:
        changes = weighted_changes(blocks, pruning, weights, statistics)
        election(at, weights, normalize=normalize)(changes, out)
        if lambda_ != 1:
            out *= lambda_
        return np.add(blocks[0], out, out=out)

    divisors = divisor_table(weights, normalize)

    def compiled_form(blocks: StoredBlocks, statistics: Any, dtype: str, out: Array) -> bool:
        assert divisors is not None
        changes = changes_of(blocks, pruning, weights, statistics)
        fits, defined = compiled.elected(blocks, changes, divisors, lambda_, dtype, out)
        if not defined:
            raise undefined(at, weights)
        return fits

    return Arithmetic(
        combine, pruning.statistics, run=pruning.run, held_bytes=pruning.held_bytes,
        compiled=None if divisors is None else compiled_form,
    )  # fmt: skip


def weighted_changes(
    blocks: Blocks, pruning: Pruning, weights: Sequence[float], statistics: Any
) -> list[Array]:
    """Return the pruned task vectors, times their weights, in arrays of their own."""
    changes: list[Array] = []
    for model, (tensor, weight) in enumerate(zip(blocks[1:], weights, strict=True)):
        change = np.subtract(tensor, blocks[0])
        pruning.prune(model, change, blocks.start, statistics)
        if weight != 1:
            change *= weight
        changes.append(change)
    return changes

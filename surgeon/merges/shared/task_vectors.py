"""What is made of pruned task vectors: their weighted sum, or what is left of it by election."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from surgeon.lazy import Blocks
from surgeon.merges.shared import Arithmetic, TensorContext, Varying, total_weight
from surgeon.merges.shared.election import election
from surgeon.merges.shared.pruning import Pruning
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
    has_negative = min(*weights, lambda_, 0) < 0

    def combine(blocks: Blocks, statistics: Any, out: Array) -> Array:
        base = blocks[0]
        spare = out
        for model, (tensor, weight) in enumerate(zip(blocks[1:], weights, strict=True)):
            # Negative task vectors: subtracting a zero from the base keeps the base's sign of zero.
            change = np.subtract(base, tensor, out=spare)
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
        if has_negative:
            out += 0.0
        return np.subtract(base, out, out=out)

    return Arithmetic(combine, pruning.statistics, run=pruning.run, held_bytes=pruning.held_bytes)


def elect_and_add(
    at: TensorContext,
    pruning: Pruning,
    *,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: NormalizeAgreeing = True,
) -> Arithmetic:
    """Return b + λ Σ wᵢ sᵢ over those that agree, divided by their Σ wᵢ where `normalize`."""
    elect = election(at, weights, normalize=normalize)

    def combine(blocks: Blocks, statistics: Any, out: Array) -> Array:
        changes = weighted_changes(blocks, pruning, weights, statistics)
        elect(changes, out)
        if lambda_ != 1:
            out *= lambda_
        return np.add(blocks[0], out, out=out)

    return Arithmetic(combine, pruning.statistics, run=pruning.run, held_bytes=pruning.held_bytes)


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

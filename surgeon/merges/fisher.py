"""Mean of models in which each value counts as much as its model depends on it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.lazy import StoredBlocks
from surgeon.merges.shared import (
    Arithmetic,
    AuxiliaryTensors,
    TensorContext,
    Varying,
    merge,
    total_weight,
    within,
)
from surgeon.numeric.compiled import Block
from surgeon.numeric.dtypes import Array
from surgeon.numeric.weighing import Weighed, Weights, weighed


@merge(
    example={"models": ["other"], "importances": ["fisher", "other_fisher"]},
    paper="Matena and Raffel 2021, Merging Models with Fisher-Weighted Averaging, "
    "https://arxiv.org/abs/2111.09832",
)
def fisher(
    *,
    at: TensorContext,
    importances: Annotated[
        list[str],
        AuxiliaryTensors(optional=True),
        "models that hold diagonal Fisher values, one per operand, the base model's first",
    ],
    weights: Annotated[
        list[float],
        Varying(minimum=0, per="operand", default=1),
        "one number for all, or one per operand, the base model first; default equal",
    ],
) -> Arithmetic:
    """Average models, each value by its Fisher information.

    Σ wᵢ Fᵢ xᵢ / Σ wᵢ Fᵢ elementwise (equation 4), Fᵢ ≥ 0 of the same name and shape in the i-th of
    `importances`; `surgeon.training.collect_fisher` writes them. Where Σ wᵢ Fᵢ = 0, and for tensors
    that none of the `importances` has, such as buffers: Σ wᵢ xᵢ / Σ wᵢ. The authors add 1e-6 to
    every Fᵢ instead. Raises for negative Fᵢ, and for weights that add up to zero.
    """
    total = total_weight(weights)
    count = len(weights)

    def negative() -> PlanError:
        return PlanError(f"'{at.name}' has negative Fisher values in one of 'importances'")

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        models, values = blocks[:count], blocks[count:]
        if any(bool((value < 0).any()) for value in values):
            raise negative()
        return mean(models, values, weights, total, out)

    def compiled_form(blocks: StoredBlocks, statistics: None, dtype: str, out: Array) -> bool:
        models, values = blocks[:count], blocks[count:]
        zero = Block(np.zeros(1), "F64")
        found = [Weights(value) for value in values] or [Weights(zero, by_place=0)] * count
        by = [replace(one, factor=float(w)) for one, w in zip(found, weights, strict=True)]
        fits, positive = weighed(models, by, Weighed.MEAN, dtype, out, total=total)
        if not positive:
            raise negative()
        return fits

    return Arithmetic(combine, compiled=compiled_form)


def mean(
    models: Sequence[Array], values: Sequence[Array], weights: Sequence[float], total: float,
    out: Array,
) -> Array:  # fmt: skip
    """Write the mean of models by their weights, and by values where there are any but zeros."""
    np.multiply(models[0], weights[0], out=out)
    for model, weight in zip(models[1:], weights[1:], strict=True):
        out += model * weight
    out /= total
    if values:
        sums, divisor = np.zeros_like(out), np.zeros_like(out)
        for model, value, weight in zip(models, values, weights, strict=True):
            factor = value * weight
            divisor += factor
            factor *= model
            sums += factor
        np.divide(sums, divisor, out=out, where=divisor != 0)
    return within(models, out)

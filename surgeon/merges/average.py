"""Weighted mean of models."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from surgeon.dtypes import Array
from surgeon.merging import Arithmetic, Varying, merge, total_weight


@merge(
    example={"models": ["other"]},
    paper="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482",
)
def average(
    *,
    weights: Annotated[
        list[Annotated[float, Varying()]], "one per operand, the state first; default equal"
    ],
    normalize: Annotated[bool, "divide by the sum of the weights"] = True,
) -> Arithmetic:
    """Average the state with other models.

    Σ wᵢ xᵢ over the state and the models, divided by Σ wᵢ where `normalize`. Raises where weights
    that are to be divided by their sum add up to zero.
    """
    total = total_weight(weights) if normalize else 1.0

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        np.multiply(blocks[0], weights[0] / total, out=out)
        for block, weight in zip(blocks[1:], weights[1:], strict=True):
            out += block * (weight / total)
        return out

    return Arithmetic(combine)

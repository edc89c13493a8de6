"""Weighted mean of models."""

from collections.abc import Sequence
from math import frexp
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
    shares = [weight / total for weight in weights]
    # A power of two times a float is exact, so that float32 rounds the sum alone.
    exact = all(frexp(share)[0] in (0.5, -0.5, 0.0) for share in shares)

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        if len(set(shares)) == 1:
            np.add(blocks[0], blocks[1], out=out)
            for block in blocks[2:]:
                np.add(out, block, out=out)
            return np.multiply(out, shares[0], out=out)
        np.multiply(blocks[0], shares[0], out=out)
        for block, share in zip(blocks[1:], shares[1:], strict=True):
            out += block * share
        return out

    return Arithmetic(combine, exact_in_float32=exact)

"""Weighted mean of models."""

from collections.abc import Sequence
from math import frexp
from typing import Annotated

import numpy as np

from surgeon.lazy.forms import Linear
from surgeon.merges.shared import Arithmetic, Varying, merge, total_weight
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other"]},
    paper="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482",
)
def average(
    *,
    weights: Annotated[
        list[float],
        Varying(per="operand", default=1),
        "one number for all, or one per operand, the base model first; default equal",
    ],
    normalize: Annotated[bool, "divide by the sum of the weights"] = True,
    decay: Annotated[
        float | None,
        "what the average keeps at each further operand, the oldest first (EMA); "
        "these shares multiply the weights",
        {"minimum": 0, "exclusiveMaximum": 1},
    ] = None,
) -> Arithmetic:
    """Average the base model with other models.

    Σ wᵢ xᵢ over all operands, divided by Σ wᵢ where `normalize`. Raises where weights
    that are to be divided by their sum add up to zero. With `decay` d the operands are a series:
    the mean starts as the first, and each further one makes it d times itself plus 1 - d of that.
    """
    if decay is not None:
        last = len(weights) - 1
        shares = [(1 - decay if i else 1.0) * decay ** (last - i) for i in range(len(weights))]
        weights = [weight * share for weight, share in zip(weights, shares, strict=True)]
    total = total_weight(weights) if normalize else 1.0
    equal = normalize and len(set(weights)) == 1
    divisor = total / weights[0] if equal else total
    factors = [] if equal else weights
    # Two operands times powers of two: float32 rounds their sum alone, and so once.
    exact = len(weights) == 2 and all(map(_is_power_of_two, [divisor, *filter(None, factors)]))

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        if equal:
            np.add(blocks[0], blocks[1], out=out)
            for block in blocks[2:]:
                np.add(out, block, out=out)
        else:
            np.multiply(blocks[0], weights[0], out=out)
            for block, weight in zip(blocks[1:], weights[1:], strict=True):
                out += block * weight
        # Divided in the end, not weight by weight: what lies halfway must stay halfway.
        if _is_power_of_two(divisor):
            return np.multiply(out, 1 / divisor, out=out)
        return np.divide(out, divisor, out=out)

    by, into = (1 / divisor, 1.0) if _is_power_of_two(divisor) else (1.0, divisor)
    form = Linear([1.0] * len(weights) if equal else weights, by, into, exact, keep_zeros=not exact)
    return Arithmetic(combine, exact_in_float32=exact, compiled=form)


def _is_power_of_two(value: float) -> bool:
    return abs(frexp(value)[0]) == 0.5

"""Riemannian mean of the directions of several tensors."""

from math import acos, cos, sin, sqrt
from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, Varying, merge, total_weight
from surgeon.merges.shared.gram import Vectors, by_inner_products
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other"]},
    paper="The Riemannian (Karcher) mean for merging, https://arxiv.org/abs/2603.04972",
)
def karcher(
    *,
    weights: Annotated[
        list[float],
        Varying(minimum=0, per="operand", default=1),
        "one number for all, or one per operand, the base model first; default equal",
    ],
    tolerance: Annotated[
        float, "end after a step shorter than this, in radians", {"exclusiveMinimum": 0}
    ] = 1e-5,
    max_iterations: Annotated[int, "end after as many steps", {"minimum": 1}] = 10,
) -> Arithmetic:
    """Average models' directions on the sphere, and their lengths.

    With uᵢ = xᵢ/‖xᵢ‖ over all operands, and αᵢ = wᵢ / Σ w: from the normalised Σ αᵢ uᵢ
    on, u ← exp_u(Σ αᵢ log_u uᵢ) until the step is shorter than `tolerance`; the result is
    u · Σ αᵢ‖xᵢ‖. Zero vectors are left out of the mean of directions, but count with their length.
    Where directions cancel (‖Σ αᵢ uᵢ‖ < `tolerance`) the iteration starts at the first one. An uᵢ
    within `tolerance` of u adds nothing to a step, and neither does one as near to -u, which no
    shortest arc leads to. All iterates are combinations of the uᵢ, so that inner products are
    enough to compute them, and the data are read twice.

    mergekit 0.1.5 has no weights, counts norms below `tolerance` as zero, and divides by sin θ for
    opposite vectors, too.
    """
    shares = np.array(weights) / total_weight(weights)

    def factors(products: Array) -> Array:
        return _mean(products[0], shares, tolerance, max_iterations)[None]

    vectors = Vectors()
    return by_inner_products(vectors, factors)


def _mean(products: Array, shares: Array, tolerance: float, max_iterations: int) -> Array:
    """Return each operand's share in the mean, from their inner products."""
    norms = np.sqrt(np.diagonal(products))
    present = norms != 0
    if not np.isfinite(products).all() or not (shares * present).any():
        return np.asarray(shares * norms)  # all is zero, or nothing is finite, and so is the result
    units = products[np.ix_(present, present)] / norms[present, None] / norms[present]
    weights = shares[present] / shares[present].sum()
    mean = _normalise(weights, units, tolerance)
    for _ in range(max_iterations):
        towards = _tangent(mean, weights, units, tolerance)
        length = _length(towards, units)
        if length < tolerance:
            break
        mean = cos(length) * mean + (sin(length) / length) * towards
        mean /= _length(mean, units)
    found = np.zeros(len(norms))
    found[present] = mean / norms[present] * float(shares @ norms)
    return np.asarray(found)


def _normalise(weights: Array, units: Array, tolerance: float) -> Array:
    length = _length(weights, units)
    if length < tolerance:
        return np.asarray(np.eye(1, len(weights))[0])
    return np.asarray(weights / length)


def _tangent(mean: Array, weights: Array, units: Array, tolerance: float) -> Array:
    """Return the weighted mean of the logarithms at a point, as a combination of the units."""
    total = np.zeros(len(weights))
    for i, cosine in enumerate(np.clip(units @ mean, -1.0, 1.0)):
        angle = acos(cosine)
        if angle < tolerance or np.pi - angle < tolerance:
            continue
        factor = weights[i] * angle / sin(angle)
        total[i] += factor
        total -= factor * cosine * mean
    return np.asarray(total)


def _length(combined: Array, units: Array) -> float:
    return sqrt(max(0.0, float(combined @ units @ combined)))
